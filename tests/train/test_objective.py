"""Distillation and output matching: losses, gradients, agreement, and which is chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import build, run, serialised

from onnxq.data.samples import open_samples
from onnxq.engine import Engine
from onnxq.load.interface import input_specs
from onnxq.numerics.distances import kl_divergence, log_probabilities
from onnxq.runtime.dataset import Joined
from onnxq.train.budget import Budget
from onnxq.train.held_out import HeldOut
from onnxq.train.objective import (
    AGREES,
    LOSS,
    Distillation,
    OutputMatching,
    choose_objective,
    target_name,
)
from onnxq.train.teacher import Teacher, keep_targets

PLAIN = "net (float[N, 4] x) => (float[N, 3] y) { y = Gemm (x, w) }"
BEHIND = """net (float[N, 4] x) => (float[N, 3, 1, 1] y) {
    a = Gemm (x, w) y = Reshape (a, shape)
}"""


def student_of(body: str = PLAIN) -> ir.Model:
    shape = {"shape": np.array([-1, 3, 1, 1])} if body is BEHIND else {}
    return build(body, {"w": (4, 3), **shape})


def trainable(model: ir.Model) -> tuple[ir.Model, np.ndarray]:
    """The model with its weight as an input, and the weight."""
    model = model.clone()
    value = model.graph.initializers.pop("w")
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([4, 3])
    weight = value.const_value.numpy()
    value.const_value = None
    model.graph.inputs.append(value)
    return model, weight


def outputs_of(
    model: ir.Model, folder, name: str = "y", count: int = 37
) -> tuple[Joined, OutputMatching]:
    rng = np.random.default_rng(1)
    specs = input_specs(model)
    x = rng.normal(size=(count, 4)).astype(np.float32)
    np.savez(folder / "x.npz", x=x)
    samples = open_samples(folder / "x.npz", specs, None)
    return keep_targets(Teacher(model, [name]), samples, folder)


@pytest.mark.parametrize("body", [PLAIN, BEHIND])
@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), size=st.floats(0.1, 20))
def test_the_loss_is_the_divergence_of_the_teachers_distribution(body, seed, size):
    model = student_of(body)
    before = serialised(model)
    attached = Distillation("y").attach(model)
    assert serialised(model) == before
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(7, 4)).astype(np.float32)
    student = run(model, {"x": x})["y"]
    target = (size * rng.normal(size=student.shape)).astype(np.float32)
    found = run(attached, {"x": x, target_name("y"): target})
    logs = [log_probabilities(rows.reshape(7, 3), False) for rows in (target, student)]
    np.testing.assert_allclose(found[LOSS], kl_divergence(*logs).sum(), rtol=1e-4, atol=1e-5)
    same = target.reshape(7, 3).argmax(axis=1) == student.reshape(7, 3).argmax(axis=1)
    assert found[AGREES] == same.sum()


@pytest.mark.parametrize("body", [PLAIN, BEHIND])
def test_a_perfect_student_has_no_loss_and_agrees(body):
    model = student_of(body)
    x = np.random.default_rng(0).normal(0, 5, (9, 4)).astype(np.float32)
    target = run(model, {"x": x})["y"]
    found = run(Distillation("y").attach(model), {"x": x, target_name("y"): target})
    assert abs(float(found[LOSS])) < 1e-5
    assert found[AGREES] == 9
    assert Distillation("y").score(-1e-9, 9) == 0


@pytest.mark.parametrize("body", [PLAIN, BEHIND])
def test_the_gradient_is_that_of_finite_differences(body):
    model, weight = trainable(Distillation("y").attach(student_of(body)))
    engine = Engine(model, ["w"], LOSS, workers=1)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(6, 4)).astype(np.float32)
    shape = (6, 3, 1, 1) if body is BEHIND else (6, 3)
    shard = {"x": x, target_name("y"): rng.normal(0, 2, shape).astype(np.float32)}
    weight = weight.copy()
    _, found = engine.gradients({"w": weight}, [shard])
    for index in np.ndindex(weight.shape):
        losses = []
        for sign in (1, -1):
            moved = weight.copy()
            moved[index] += np.float32(sign * 0.01)
            losses.append(engine.gradients({"w": moved}, [shard])[0])
        slope = (losses[0] - losses[1]) / 0.02
        assert found["w"][index] == pytest.approx(slope, rel=5e-3, abs=5e-3), index


@given(st.floats(1e-3, 1e3), st.integers(1, 999))
def test_a_slope_is_the_derivative_of_the_score(loss, samples):
    for objective in (Distillation("y"), OutputMatching({"y": 1.0})):
        change = 1e-4 * loss
        above, below = (objective.score(loss + sign * change, samples) for sign in (1, -1))
        slope = objective.slope(loss, samples)
        assert slope == pytest.approx((above - below) / (2 * change), rel=1e-3)


def test_the_judge_says_how_often_decisions_agree(tmp_path):
    teacher, student = student_of(), student_of()
    weight = np.random.default_rng(5).normal(size=(4, 3)).astype(np.float32)
    student.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    outputs, matching = outputs_of(teacher, tmp_path)
    x = np.concatenate([feeds["x"] for feeds in outputs.batches(8)])
    one, other = (run(model, {"x": x})["y"] for model in (teacher, student))
    expected = 100 * float(np.mean(one.argmax(axis=1) == other.argmax(axis=1)))
    assert 0 < expected < 100
    logs = [log_probabilities(rows, False) for rows in (one, other)]
    for objective in (Distillation("y"), replace(matching, decision="y")):
        found = HeldOut(objective.attach(student), outputs, objective).evaluate({})
        assert found.agreement == pytest.approx(expected)
        if isinstance(objective, Distillation):
            assert found.score == pytest.approx(float(kl_divergence(*logs).mean()), rel=1e-3)


def test_a_feed_of_fixed_batch_counts_its_samples(tmp_path):
    free = student_of()
    fixed = build("net (float[4, 4] x) => (float[4, 3] y) { y = Gemm (x, w) }", {"w": (4, 3)})
    found = []
    for model in (free, fixed):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        outputs, matching = outputs_of(model, folder, count=36)
        student = model.clone()
        weight = student.graph.initializers["w"].const_value.numpy()
        student.graph.initializers["w"].const_value = ir.tensor(1.5 * weight, name="w")
        for objective in (Distillation("y"), choose_objective(matching, distil=False)):
            found.append(HeldOut(objective.attach(student), outputs, objective).evaluate({}))
    for one, other in zip(found[:2], found[2:], strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-4)
        assert one.agreement == other.agreement == 100


@pytest.mark.parametrize(
    ("text", "decides"),
    [
        (PLAIN, True),
        ("net (float[N, 4] x) => (float[N, 3] y) { a = Gemm (x, w) y = Softmax (a) }", False),
        ("net (float[N, 4] x) => (float[N, 1] y) { y = Gemm (x, v) }", False),
    ],
)
def test_only_a_classifiers_logits_are_distilled(tmp_path, text, decides):
    weights = {name: shape for name, shape in {"w": (4, 3), "v": (4, 1)}.items() if name in text}
    _, matching = outputs_of(build(text, weights), tmp_path)
    found = choose_objective(matching, distil=True)
    assert isinstance(found, Distillation if decides else OutputMatching)
    plain = choose_objective(matching, distil=False)
    assert isinstance(plain, OutputMatching)
    assert plain.decision == ("y" if decides else None)


def test_several_outputs_are_matched(tmp_path):
    model = build(
        "net (float[N, 4] x) => (float[N, 3] y, float[N, 3] z) { y = Gemm (x, w) z = Relu (y) }",
        {"w": (4, 3)},
    )
    np.savez(tmp_path / "x.npz", x=np.ones((4, 4), np.float32))
    samples = open_samples(tmp_path / "x.npz", input_specs(model), None)
    _, matching = keep_targets(Teacher(model, ["y", "z"]), samples, tmp_path)
    assert isinstance(choose_objective(matching, distil=True), OutputMatching)


def test_the_loss_follows_the_recipe():
    assert not Budget().distils()
    assert not Budget(loss="outputs").distils()
    assert Budget(loss="distillation").distils()
