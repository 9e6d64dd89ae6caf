"""The adversarial loss and the student that it is against."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.data.arrays import InputSpec
from onnxq.data.preprocess import Preprocess
from onnxq.engine import Engine
from onnxq.errors import ModelError
from onnxq.synthesise.float_student import PREFIX, StudentTraining, find_float_student
from onnxq.synthesise.generated import GeneratorTraining
from onnxq.synthesise.generator import NOISE, Generator, before_model, stand_alone
from onnxq.synthesise.images import image_space
from onnxq.synthesise.objective import LOSS, SynthesisObjective, term_name
from onnxq.train.objective import target_name
from tests.small_graphs import build, run
from tests.synthesise.residual_classifier import TEXT, WEIGHTS

LEARNED = {"w", "s", "b", "u", "e", "h", "k"}


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return build(TEXT, WEIGHTS)


@pytest.fixture(scope="module")
def generator() -> Generator:
    spec = InputSpec("x", np.dtype(np.float32), (None, 3, 8, 8))
    # A wide range: its edges have no gradient.
    return Generator(image_space([spec], Preprocess((0.5,), (0.05,))), (4, 4), (4, 4))


def images(count: int = 12) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(count, 3, 8, 8)).astype(np.float32)


def noise(count: int = 6) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, 100), np.float32)


def entropy(student: np.ndarray, teacher: np.ndarray) -> float:
    """-(1/N) sum p_T log p_S."""
    logs = student - np.log(np.exp(student).sum(axis=1, keepdims=True))
    chances = np.exp(teacher) / np.exp(teacher).sum(axis=1, keepdims=True)
    return float(-(chances * logs).sum(axis=1).mean())


def objective(model: ir.Model, weight: float = 2.0) -> SynthesisObjective:
    student = find_float_student(model, "x", "y")
    return SynthesisObjective({"adversarial": weight}, [], "y", student)


def test_its_parameters_are_the_weights_and_the_affine_part(model):
    student = find_float_student(model, "x", "y")
    assert set(student.parameters) == {f"{PREFIX}.{name}" for name in LEARNED}
    drawn = student.draw(np.random.default_rng(0))
    assert {name: array.shape for name, array in drawn.items()} == {
        name: shape for name, (shape, _) in student.parameters.items()
    }
    assert (drawn[f"{PREFIX}.s"] == 1).all() and (drawn[f"{PREFIX}.b"] == 0).all()
    assert drawn[f"{PREFIX}.w"].std() == pytest.approx(np.sqrt(2 / 27), rel=0.2)


def test_with_the_teachers_weights_it_differs_by_the_statistics_alone(model):
    found = objective(model, 1.0)
    attached = found.attach(model)
    own = {
        f"{PREFIX}.{name}": value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if name in LEARNED
    }
    x = images()
    # The teacher with the statistics of this batch is what the student computes.
    inner = model.clone()
    inner.graph.outputs[:] = [v for n in inner.graph for v in n.outputs if v.name == "c"]
    c = run(inner, {"x": x})["c"]
    batch = {**WEIGHTS, "m": c.mean(axis=(0, 2, 3)), "v": c.var(axis=(0, 2, 3))}
    expected = run(build(TEXT, batch), {"x": x})["y"]
    teacher = run(model, {"x": x})["y"]
    loss = run(attached, {"x": x, **own})[term_name("adversarial")]
    assert loss == pytest.approx(-entropy(expected, teacher), rel=1e-4)


def test_gradients_of_the_generator_are_those_of_finite_differences(model, generator):
    found = objective(model)
    joined, names = before_model(model, generator)
    attached = found.attach(joined)
    values = generator.parameters(np.random.default_rng(0))
    fixed = {NOISE: noise(), **found.student.draw(np.random.default_rng(1))}
    _, gradients = Engine(attached, names, LOSS, workers=1).gradients(values, [fixed])
    rng = np.random.default_rng(4)
    for name in names:
        along = rng.standard_normal(values[name].shape, np.float32)
        along /= np.linalg.norm(along)
        up, down = (
            float(run(attached, {**fixed, **values, name: values[name] + s * along})[LOSS])
            for s in (np.float32(1e-2), np.float32(-1e-2))
        )
        size = float(np.linalg.norm(gradients[name]))
        found_slope = float((gradients[name] * along).sum())
        assert found_slope == pytest.approx((up - down) / 2e-2, abs=0.03 * size + 1e-3), name


def test_the_student_learns_the_teacher(model):
    student = find_float_student(model, "x", "y")
    training = StudentTraining(model, student, seed=0)
    x = images(32)
    teacher = run(model, {"x": x})["y"]
    shards = [
        {"x": part, target_name("y"): y}
        for part, y in ((x[:16], teacher[:16]), (x[16:], teacher[16:]))
    ]
    losses = [training.step(shards) for _ in range(60)]
    floor = entropy(teacher, teacher)
    assert floor < losses[-1] < 0.7 * losses[0] + 0.3 * floor


def test_the_generator_looks_for_what_the_student_does_not_know(model, generator):
    # With the other sign it would look for what the student knows.
    student = find_float_student(model, "x", "y")
    losses = []
    for weight in (0.0, 30.0):
        weights, kept = {"inception": 1e-3, "adversarial": weight}, student if weight else None
        found = SynthesisObjective(weights, [], "y", kept)
        training = GeneratorTraining(model, generator, found, 25, seed=0, rate=0.02)
        if training._student is not None:
            training._student.optimizer.lr = 0.0  # the same student all along
        for _ in range(25):
            training.step(16, 2)
        made = run(stand_alone(generator, training.parameters, 14), {NOISE: noise(32)})["x"]
        shard = {"x": made, target_name("y"): run(model, {"x": made})["y"]}
        losses.append(StudentTraining(model, student, seed=0).step([shard]))
    without, sought = losses
    assert sought > without + 0.1


def test_both_learn_in_turn_and_go_on_from_a_state(model, generator):
    def training() -> GeneratorTraining:
        student = find_float_student(model, "x", "y")
        weights = {"inception": 1.0, "adversarial": 1.0}
        found = SynthesisObjective(weights, [], "y", student)
        return GeneratorTraining(model, generator, found, 8, seed=0)

    whole, first, second = training(), training(), training()
    losses = [whole.step(8, 2) for _ in range(8)]
    for _ in range(4):
        first.step(8, 2)
    second.load_state(first.state())
    assert [second.step(8, 2) for _ in range(4)] == losses[4:]
    assert {"inception", "adversarial"} == set(losses[0])


def test_a_network_with_graphs_inside_has_no_student():
    text = """net (float[N, 4] x, bool c) => (float[N, 4] y) {
        y = If (c) <then_branch = a () => (float[N, 4] p) { p = Neg (x) },
                    else_branch = b () => (float[N, 4] q) { q = Relu (x) }>
    }"""
    inner = build(text, {})
    with pytest.raises(ModelError, match="has a sub-graph"):
        find_float_student(inner, "x", "y")
