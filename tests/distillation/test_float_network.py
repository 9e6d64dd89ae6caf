"""What of a student is trained, and what it computes while it is."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.data.files import read_rows
from onnxq.distillation.network import (
    BIAS,
    PREFIX,
    SCALE,
    WEIGHT,
    BatchStatistics,
    FloatNetwork,
    draw,
    find_parameters,
    rename,
)
from onnxq.engine import Engine
from onnxq.errors import ModelError
from onnxq.normalise.infer_shapes import InferShapes
from onnxq.runtime.dataset import Samples
from onnxq.runtime.session import Arrays, expose
from onnxq.train.objective import LOSS, Distillation, OutputMatching, target_name
from tests.distillation.float_students import PLAIN, images, plain, student
from tests.small_graphs import build, run


@pytest.fixture(scope="module")
def network() -> FloatNetwork:
    return FloatNetwork(student())


def test_every_layer_has_constants_of_its_own(network):
    kinds = sorted(each.kind for each in network.parameters.values())
    assert kinds == sorted([WEIGHT] * 3 + [SCALE] * 2 + [BIAS] * 3)
    first, second = network.moments
    assert len({first.mean, first.variance, second.mean, second.variance}) == 4
    # The model computes what it did.
    x = images(4)
    found = run(network.model, {"image": x})["scores"]
    np.testing.assert_array_equal(found, run(student(), {"image": x})["scores"])
    again = FloatNetwork(network.model)
    assert list(again.parameters) == list(network.parameters)


def test_tied_weights_stay_tied():
    text = PLAIN.replace(
        "y = MatMul (r, u)", "s = MatMul (r, v) t = MatMul (s, v) y = MatMul (t, u)"
    )
    weights = {"w": (72, 8), "b": (8,), "u": (8, 4), "v": (8, 8)}
    tied = FloatNetwork(build(text, weights))
    assert list(tied.parameters) == ["w", "b", "v", "u"]
    start = tied.start()
    trained = tied.training({})
    outputs, slope = expose(trained, ["y"]), 1e-2
    moved = {**start, "v": start["v"] + np.float32(slope)}
    found = run(outputs, {"x": images(3), **moved})["y"]
    both = build(text, weights)
    both.graph.initializers["v"].const_value = ir.tensor(moved["v"])
    np.testing.assert_allclose(found, run(both, {"x": images(3)})["y"], rtol=1e-4, atol=1e-4)


def test_a_constant_that_another_node_reads_too_is_not_trained_there():
    text = """net (float[N, 4] x) => (float[N, 4] y) {
        p = MatMul (x, w) q = Add (p, z) y = Max (q, z)
    }"""
    found = FloatNetwork(build(text, {"w": (4, 4), "z": np.zeros(4, np.float32)}))
    bias = next(name for name, each in found.parameters.items() if each.kind == BIAS)
    maximum = next(node for node in found.model.graph if node.op_type == "Max")
    assert bias != "z" and maximum.inputs[1].name == "z"


@pytest.mark.parametrize(
    ("node", "shape", "fan_in"),
    [
        ("y = Conv <group = 2> (x, w)", (4, 1, 3, 3), 9),
        ("y = Conv (x, w)", (4, 2, 3, 3), 18),
        ("y = ConvTranspose <strides = [2, 2]> (x, w)", (2, 4, 2, 2), 2),
        ("f = Flatten (x) y = Gemm <transB = 1> (f, w)", (3, 72), 72),
        ("f = Flatten (x) y = Gemm (f, w)", (72, 100), 72),
        ("f = Flatten (x) y = MatMul (f, w)", (72, 3), 72),
    ],
)
def test_random_weights_have_the_variance_of_he(node, shape, fan_in):
    rank = 4 if "Conv" in node else 2
    text = f"net (float[N, 2, 6, 6] x) => (float[{', '.join('abcd'[:rank])}] y) {{ {node} }}"
    (found,) = find_parameters(build(text, {"w": shape})).values()
    assert (found.kind, found.shape, found.fan_in) == (WEIGHT, shape, fan_in)
    values = np.concatenate([found.draw(np.random.default_rng(i)).ravel() for i in range(60)])
    assert values.var() == pytest.approx(2 / fan_in, rel=0.15)


def test_what_is_drawn_depends_on_the_seed(network):
    first, again, other = (draw(network.parameters, seed) for seed in (0, 0, 1))
    for name, each in network.parameters.items():
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] == other[name]).all() == (each.kind != WEIGHT)


@settings(max_examples=8)
@given(seed=st.integers(0, 2**16), count=st.integers(2, 9))
def test_training_is_inference_with_the_statistics_of_the_batch(network, seed, count):
    rng = np.random.default_rng(seed)
    x = rng.normal(rng.normal(), 1 + rng.random(), (count, 2, 6, 6)).astype(np.float32)
    values = draw(network.parameters, seed)
    training = network.training({})
    names = [n for m in network.moments for n in (m.batch_mean, m.batch_variance)]
    found = run(expose(training, ["scores", *names]), {"image": x, **values})
    statistics = {m.mean: found[m.batch_mean].reshape(-1) for m in network.moments}
    statistics |= {m.variance: found[m.batch_variance].reshape(-1) for m in network.moments}
    expected = run(network.inference({}), {"image": x, **values, **statistics})["scores"]
    np.testing.assert_allclose(found["scores"], expected, rtol=1e-3, atol=1e-4)
    written = run(network.with_values({**values, **statistics}), {"image": x})["scores"]
    np.testing.assert_array_equal(written, expected)


@pytest.mark.parametrize("kind", ["outputs", "distillation"])
def test_gradients_are_those_of_finite_differences(network, kind):
    matching = OutputMatching({"scores": 0.5}, "scores")
    objective = matching if kind == "outputs" else Distillation("scores")
    attached = InferShapes()(objective.attach(network.training({}))).model
    rng = np.random.default_rng(5)
    target = rng.normal(size=(8, 4)).astype(np.float32)
    fixed = {"image": images(8), target_name("scores"): target}
    values = draw(network.parameters, 4)
    # Scales and biases that all differ.
    values = {n: v + rng.normal(0, 0.2, v.shape).astype(np.float32) for n, v in values.items()}
    _, slopes = Engine(attached, list(values), LOSS, workers=1).gradients(values, [fixed])
    for name in values:
        along = rng.standard_normal(values[name].shape, np.float32)
        along /= np.linalg.norm(along)
        up, down = (
            float(run(attached, {**fixed, **values, name: values[name] + s * along})[LOSS])
            for s in (np.float32(3e-3), np.float32(-3e-3))
        )
        size = float(np.linalg.norm(slopes[name]))
        found = float((slopes[name] * along).sum())
        assert found == pytest.approx((up - down) / 6e-3, abs=0.02 * size + 2e-3), name


def samples_of(x: np.ndarray) -> Samples:
    rows = {"image": x, "more": np.arange(len(x))}
    return Samples(partial(read_rows, rows, ()), np.arange(len(x)))


@settings(max_examples=6)
@given(seed=st.integers(0, 2**16), size=st.integers(3, 24))
def test_pooled_statistics_are_those_of_all_samples(network, seed, size):
    values = draw(network.parameters, seed)
    x = images(24) * np.linspace(0.5, 2, 24, dtype=np.float32)[:, None, None, None]
    measure = BatchStatistics(network.training({}), network.moments, samples_of(x), size)
    found: Arrays = measure.measure(values)
    # What enters the first one does not depend on how samples were batched.
    used = x[: len(x) - len(x) % size]
    entered = run(expose(network.inference({}), ["c"]), inference_feeds(network, used, values))["c"]
    first = network.moments[0]
    np.testing.assert_allclose(found[first.mean], entered.mean((0, 2, 3)), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found[first.variance], entered.var((0, 2, 3)), rtol=1e-3, atol=1e-5)
    assert all((found[each.variance] >= 0).all() for each in network.moments)


def inference_feeds(network: FloatNetwork, x: np.ndarray, values: Arrays) -> Arrays:
    return {"image": x, **values, **network.statistics()}


def test_names_that_are_taken_make_room():
    model = build(PLAIN, {"w": (72, 8), "b": (8,), "u": (8, 4)})
    expected = run(model, {"x": images(2)})["y"]
    rename(model.graph, {"x": "w", "y": "r"})
    found = run(model, {"w": images(2)})["r"]
    np.testing.assert_array_equal(found, expected)
    assert f"{PREFIX}.w" in model.graph.initializers
    # Two that change places.
    rename(model.graph, {"w": "r", "r": "w"})
    np.testing.assert_array_equal(run(model, {"r": images(2)})["w"], expected)


def test_a_student_without_batch_normalization_has_no_statistics():
    network = FloatNetwork(plain())
    assert network.moments == [] and network.statistics() == {}
    assert BatchStatistics(network.training({}), [], samples_of(images(4)), 2).measure({}) == {}
    found = run(network.training({}), {"x": images(3), **network.start()})["y"]
    np.testing.assert_array_equal(found, run(plain(), {"x": images(3)})["y"])


def test_a_student_without_weights_is_refused():
    with pytest.raises(ModelError, match="no constant float weights"):
        FloatNetwork(build("net (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }", {}))
