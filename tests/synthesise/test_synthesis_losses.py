"""Each loss by its formula, its gradient, and that it wants the right thing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.engine import Engine
from onnxq.synthesise.images import ImageSpace
from onnxq.synthesise.objective import (
    LOSS,
    BatchNorm,
    Distilled,
    SynthesisObjective,
    find_batch_norms,
    term_name,
)
from tests.small_graphs import build, run

TEXT = """net (float[N, 2, 4, 4] x) => (float[N, 3] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w)
    b = BatchNormalization <epsilon = 0.01> (c, scale, bias, mean, var)
    t = Tanh (b) p = GlobalAveragePool (t) f = Flatten (p) h = Gemm <transB = 1> (f, v)
    y = Mul (h, ten)
}"""
WEIGHTS = {
    "w": (4, 2, 3, 3),
    "scale": np.array([1, 0.5, 2, 1], np.float32),
    "bias": np.array([0, 0.1, 0, -0.2], np.float32),
    "mean": np.array([0.3, -0.2, 0.1, 0], np.float32),
    "var": np.array([0.5, 2, 1, 0.1], np.float32),
    "v": (3, 4),
    "ten": np.array(10, np.float32),
}
KINDS = ("inception", "bn", "bn-moments")
ALPHA = 3.0


@pytest.fixture(scope="module", params=[14, 18])
def model(request) -> ir.Model:
    return build(TEXT, WEIGHTS, request.param)


def objective(model: ir.Model, kind: str, weight: float = ALPHA) -> SynthesisObjective:
    norms = find_batch_norms(model)
    return SynthesisObjective({kind: weight}, norms, "y")


def images(count: int = 5) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(count, 2, 4, 4)).astype(np.float32)


def expected(kind: str, model: ir.Model, x: np.ndarray) -> float:
    """The formulas of the docstrings in numpy."""
    if kind == "inception":
        logits = run(model, {"x": x})["y"].astype(np.float64)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return float(-(p * np.log(p / p.mean(axis=0) ** ALPHA)).sum(axis=1).mean())
    (norm,) = find_batch_norms(model)
    inner = model.clone()
    inner.graph.outputs[:] = [v for n in inner.graph for v in n.outputs if v.name == norm.tensor]
    c = run(inner, {"x": x})[norm.tensor].astype(np.float64)
    m, v = c.mean(axis=(0, 2, 3)), c.var(axis=(0, 2, 3)) + norm.epsilon
    stored = norm.variance + norm.epsilon
    if kind == "bn-moments":
        spread = v - stored * np.log(v) - (stored - stored * np.log(stored))
        return float((spread + (m - norm.mean) ** 2).mean())
    return float(((v + (m - norm.mean) ** 2) / stored - 1 - np.log(v / stored)).mean() / 2)


def test_the_statistics_are_those_of_the_node(model):
    (norm,) = find_batch_norms(model)
    assert (norm.tensor, norm.rank, norm.epsilon) == ("c", 4, pytest.approx(0.01))
    np.testing.assert_array_equal(norm.mean, WEIGHTS["mean"])
    np.testing.assert_array_equal(norm.variance, WEIGHTS["var"])


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_their_formulas(model, kind):
    x, before = images(), ir.to_proto(model).SerializeToString()
    attached = objective(model, kind).attach(model)
    found = run(attached, {"x": x})
    assert ir.to_proto(model).SerializeToString() == before
    weight = 1 if kind == "inception" else ALPHA
    assert found[term_name(kind)] == pytest.approx(expected(kind, model, x), rel=1e-4)
    assert found[LOSS] == pytest.approx(weight * expected(kind, model, x), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(model, kind):
    x, step = images(), 1e-2
    attached = objective(model, kind).attach(model)
    _, found = Engine(attached, ["x"], LOSS, workers=1).gradients({"x": x}, [{}])
    rng = np.random.default_rng(0)
    for _ in range(6):
        # One direction through all elements says more than one element, above float32's noise.
        along = rng.normal(size=x.shape).astype(np.float32)
        up, down = (run(attached, {"x": x + s * step * along})[LOSS] for s in (1, -1))
        numeric = (float(up) - float(down)) / (2 * step)
        size = float(np.abs(found["x"]).sum())
        assert float((found["x"] * along).sum()) == pytest.approx(
            numeric, abs=0.01 * size, rel=0.02
        )


# With another sign of the loss, or of its gradient, these would go the other way.
DESCENTS = [
    ("inception", ALPHA, lambda model, x: -_entropies(model, x)[1]),  # all classes occur
    ("inception", 0.01, lambda model, x: _entropies(model, x)[0]),  # each image is clear
    ("bn", 1.0, lambda model, x: _distance(model, x)),
    ("bn-moments", 1.0, lambda model, x: _distance(model, x)),
]


@pytest.mark.parametrize(("kind", "weight", "measure"), DESCENTS)
def test_descent_lowers_each_loss(model, kind, weight, measure):
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    space = ImageSpace("x", (2, 4, 4), None, zero, one, -3 * one, 3 * one, (2, 3))
    distilled = Distilled(model, space, objective(model, kind, weight), 0.1)
    descent = distilled.begin([(0, 0), (0, 1)], 8, 30)
    before = np.concatenate(descent.batches)
    for _ in range(30):
        descent.step()
    after = np.concatenate(descent.batches)
    assert np.abs(after).max() <= 3
    assert measure(model, after) < measure(model, before)


def _entropies(model: ir.Model, x: np.ndarray) -> tuple[float, float]:
    """Of an image's classes on average, and of those of all images together."""
    logits = run(model, {"x": x})["y"].astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    mean = p.mean(axis=0)
    return float(-(p * np.log(p)).sum(axis=1).mean()), float(-(mean * np.log(mean)).sum())


def _distance(model: ir.Model, x: np.ndarray) -> float:
    """Of mean and deviation of each channel to the stored ones."""
    (norm,) = find_batch_norms(model)
    inner = model.clone()
    inner.graph.outputs[:] = [v for n in inner.graph for v in n.outputs if v.name == norm.tensor]
    c = run(inner, {"x": x})[norm.tensor]
    shift = np.abs(c.mean(axis=(0, 2, 3)) - norm.mean).sum()
    return float(shift + np.abs(c.std(axis=(0, 2, 3)) - np.sqrt(norm.variance)).sum())


def test_weights_of_zero_leave_a_loss_out(model):
    norms = find_batch_norms(model)
    weights = {"inception": 2.0, "bn": 0.0, "bn-moments": 1.0}
    found = SynthesisObjective(weights, norms, "y")
    assert found.kinds == ["inception", "bn-moments"]
    outputs = [value.name for value in found.attach(model).graph.outputs]
    assert outputs == [LOSS, term_name("inception"), term_name("bn-moments")]
    assert SynthesisObjective(weights, [], None).kinds == []


def test_norms_in_training_mode_are_passed_over():
    text = TEXT.replace("epsilon = 0.01", "epsilon = 0.01, training_mode = 1").replace(
        "b = Batch", "b, m1, v1 = Batch"
    )
    assert find_batch_norms(build(text, WEIGHTS)) == []


def test_a_match_costs_nothing():
    # x itself enters the norm, and has its statistics exactly.
    text = """net (float[N, 2] x) => (float[N, 2] y) {
        y = BatchNormalization <epsilon = 0.0> (x, one, one, mean, var)
    }"""
    x = images()[:, :, 0, 0]
    mean, var = x.mean(axis=0), x.var(axis=0)
    model = build(text, {"one": np.ones(2, np.float32), "mean": mean, "var": var})
    norm = BatchNorm("n", "x", 2, mean, var, 0.0)
    for kind in ("bn", "bn-moments"):
        attached = SynthesisObjective({kind: 1.0}, [norm], None).attach(model)
        assert run(attached, {"x": x})[LOSS] == pytest.approx(0, abs=1e-6)
        assert run(attached, {"x": 2 * x})[LOSS] > 0.01
        assert run(attached, {"x": x / 2})[LOSS] > 0.01
