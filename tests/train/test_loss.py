"""What the student is compared with, and where."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import build, quantize, run, serialised, small_graph

from onnxq.data.samples import open_samples
from onnxq.load.interface import input_specs
from onnxq.runtime.dataset import Samples
from onnxq.runtime.session import expose
from onnxq.train.budget import SHARD_SIZE, shard_size
from onnxq.train.held_out import HeldOut
from onnxq.train.objective import LOSS, attach_loss, find_logits, target_name
from onnxq.train.teacher import MICRO_BATCH, Teacher, keep_targets

TWO_OUTPUTS = """net (float[N, 4] x) => (float[N, 3] y, float[N, 2, 2] z) {
    a = Gemm (x, w) s = Relu (a) y = Gemm (s, v) b = Gemm (s, u) z = Reshape (b, shape)
}"""
SHAPES = {"w": (4, 8), "v": (8, 3), "u": (8, 4), "shape": np.array([-1, 2, 2])}


def samples_of(model: ir.Model, folder, count: int = 37) -> Samples:
    (spec,) = input_specs(model)
    shape = [count, *(size or 1 for size in spec.shape[1:])]
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    np.savez(folder / "x.npz", **{spec.name: x})
    return open_samples(folder / "x.npz", [spec], None)


def two_outputs() -> ir.Model:
    return build(TWO_OUTPUTS, SHAPES)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Gemm (x, w)", "y"),
        ("a = Gemm (x, w) y = Softmax (a)", "a"),
        ("a = Gemm (x, w) y = LogSoftmax (a)", "a"),
        ("a = Gemm (x, w) b = Softmax (a) y = Identity (b)", "a"),
        ("a = Gemm (x, w) b = Softmax (a) y = Reshape (b, shape)", "a"),
        ("a = Gemm (x, w) y = Sigmoid (a)", "y"),
    ],
)
def test_logits_are_what_enters_a_softmax(body, expected):
    constants = {"w": (4, 3)} | ({"shape": np.array([-1, 3])} if "shape" in body else {})
    assert find_logits(
        build(f"net (float[N, 4] x) => (float[N, 3] y) {{ {body} }}", constants)
    ) == [expected]


def test_outputs_that_are_no_floats_are_passed_over():
    text = """net (float[N, 4] x) => (float[N, 3] p, int64[N, 1] c, float[N, 3] a) {
        a = Gemm (x, w) p = Softmax (a) c = ArgMax <axis = 1> (p)
    }"""
    assert find_logits(build(text, {"w": (4, 3)})) == ["a"]


def test_the_loss_is_the_weighted_sum_of_squared_errors():
    model = two_outputs()
    before = serialised(model)
    found = attach_loss(model, {"y": 0.5, "z": 2.0})
    assert serialised(model) == before
    assert [output.name for output in found.graph.outputs] == [LOSS]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 4)).astype(np.float32)
    targets = {
        target_name("y"): rng.normal(size=(5, 3)).astype(np.float32),
        target_name("z"): rng.normal(size=(5, 2, 2)).astype(np.float32),
    }
    outputs = run(model, {"x": x})
    expected = sum(
        factor * np.square(outputs[name] - targets[target_name(name)]).sum()
        for name, factor in (("y", 0.5), ("z", 2.0))
    )
    np.testing.assert_allclose(run(found, {"x": x, **targets})[LOSS], expected, rtol=1e-5)


def test_cached_outputs_are_the_teachers(tmp_path):
    model = two_outputs()
    samples = samples_of(model, tmp_path)
    cached, _ = keep_targets(Teacher(model, ["y", "z"]), samples, tmp_path)
    assert len(cached) == 37
    order = np.random.default_rng(0).permutation(37)
    batches = list(cached.batches(8, order))
    assert [len(batch["x"]) for batch in batches] == [8, 8, 8, 8, 5]
    for batch in batches:
        outputs = run(model, {"x": batch["x"]})
        for name in ("y", "z"):
            np.testing.assert_allclose(batch[target_name(name)], outputs[name], atol=1e-5)
    fed = np.concatenate([batch["x"] for batch in batches])
    everything = np.concatenate([batch["x"] for batch in samples.batches(8)])
    np.testing.assert_array_equal(fed, everything[order])


def test_a_zero_student_has_a_relative_error_of_one(tmp_path):
    model = two_outputs()
    samples = samples_of(model, tmp_path)
    cached, matching = keep_targets(Teacher(model, ["y", "z"]), samples, tmp_path)
    loss = 0.0
    for batch in cached.batches(MICRO_BATCH):
        for name, weight in matching.weights.items():
            loss += weight * np.square(batch[target_name(name)]).sum()
    assert matching.score(loss, 37) == pytest.approx(1.0, rel=1e-5)


def test_a_model_of_fixed_batch_is_read_feed_by_feed(tmp_path):
    model = build("net (float[2, 4] x) => (float[2, 3] y) { y = Gemm (x, w) }", {"w": (4, 3)})
    samples = samples_of(model, tmp_path, 9)
    cached, _ = keep_targets(Teacher(model, ["y"]), samples, tmp_path)
    assert len(cached) == 4
    batches = list(cached.batches(16, np.array([3, 0, 2])))
    assert [batch["x"].shape for batch in batches] == [(2, 4)] * 3
    everything = list(samples.batches(2))
    for position, batch in zip([3, 0, 2], batches, strict=True):
        np.testing.assert_array_equal(batch["x"], everything[position]["x"])
        np.testing.assert_allclose(
            batch[target_name("y")], run(model, {"x": batch["x"]})["y"], atol=1e-5
        )


def test_the_judge_scores_the_relative_error_of_the_logits(tmp_path):
    made = quantize(small_graph("residual"))
    samples = samples_of(made.teacher, tmp_path)
    cached, objective = keep_targets(Teacher(made.teacher, ["y"]), samples, tmp_path)
    held_out = HeldOut(objective.attach(made.student.model), cached, objective)
    found = held_out.score(made.student.feeds(made.qparams))
    x = np.concatenate([batch["x"] for batch in samples.batches(8)])
    expected, student = run(made.teacher, {"x": x})["y"], run(made.baked, {"x": x})["y"]
    error = np.sqrt(np.square(student - expected).sum() / np.square(expected).sum())
    assert found == pytest.approx(float(error), rel=1e-3)


def test_exposing_tensors_leaves_the_model_alone():
    model = small_graph("residual")
    before = serialised(model)
    exposed = expose(model, ["c", "y"])
    assert [output.name for output in exposed.graph.outputs] == ["c", "y"]
    assert serialised(model) == before


def test_shards_shrink_where_memory_is_short(monkeypatch):
    class Free:
        def __init__(self, available: int) -> None:
            self.available = available

    model = small_graph("residual")
    sizes = []
    for available in (10**12, 10**6, 10**3):
        monkeypatch.setattr("psutil.virtual_memory", lambda free=available: Free(free))
        sizes.append(shard_size(model))
    assert sizes[0] == SHARD_SIZE
    assert 1 < sizes[1] < SHARD_SIZE
    assert sizes[2] == 1
    assert shard_size(model, limit=10**6) < SHARD_SIZE


def test_boxes_do_not_drown_scores(tmp_path):
    """An error of a tenth of either part costs the same, though one is 300 times larger."""
    model = build(
        """net (float[N, 2, 5] x) => (float[N, 6, 5] y) {
            a = Abs (x) far = Add (a, one) boxes = Mul (far, large) scores = Sigmoid (x)
            wrong_boxes = Mul (boxes, p) wrong_scores = Mul (scores, q)
            y = Concat <axis = 1> (wrong_boxes, wrong_boxes, wrong_scores)
        }""",
        {
            "one": np.float32([1]),
            "large": np.float32([300]),
            "p": np.float32([1]),
            "q": np.float32([1]),
        },
    )
    samples = samples_of(model, tmp_path)
    held_out, objective = keep_targets(Teacher(model, ["y"]), samples, tmp_path)
    scores = {}
    for name in ("p", "q"):
        student = model.clone(deep_copy=False)
        student.graph.initializers[name].const_value = ir.tensor(np.float32([1.1]))
        scores[name] = HeldOut(objective.attach(student), held_out, objective).score({})
    assert scores["p"] == pytest.approx(0.1 / np.sqrt(2), rel=1e-3)
    assert scores["q"] == pytest.approx(0.1 / np.sqrt(2), rel=1e-3)
