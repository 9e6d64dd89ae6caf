from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.calibrate import TensorStatistics, calibrate
from onnxq.calibrate.calibrator import MOST_DRAWN, Drawn
from onnxq.calibrate.observers import VALUES_PER_BATCH, observe, stride_for
from onnxq.numerics.histogram import Histogram
from onnxq.runtime.session import Arrays, open_session


class Rows:
    """Samples in memory, in batches of `size` or of the size that the model is fixed to."""

    def __init__(self, arrays: Arrays, fixed: int | None = None) -> None:
        self.arrays = arrays
        self.fixed = fixed

    def batches(self, size: int) -> Iterator[Arrays]:
        size = self.fixed or size
        for start in range(0, len(next(iter(self.arrays.values()))), size):
            yield {name: array[start : start + size] for name, array in self.arrays.items()}


def network(batch: str = "N", opset: int = 13) -> ir.Model:
    model = ir.from_onnx_text(f"""
        <ir_version: 8, opset_import: ["" : {opset}]>
        net (float[{batch}, 3, 6, 5] x) => (float[{batch}, 4] y)
        <float[4, 3, 3, 3] w, float[4] b> {{
            conv = Conv <pads = [1, 1, 1, 1]> (x, w, b)
            relu = Relu (conv)
            pooled = GlobalAveragePool (relu)
            y = Flatten (pooled)
        }}""")
    rng = np.random.default_rng(1)
    shape: list[str | int] = [int(batch) if batch.isdigit() else batch]
    for name, dims in (("w", (4, 3, 3, 3)), ("b", (4,))):
        value = next(v for n in model.graph for v in n.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(rng.normal(size=dims).astype(np.float32), name=name)
        model.graph.register_initializer(value)
    for node, dims in zip(model.graph, [(4, 6, 5), (4, 6, 5), (4, 1, 1), (4,)], strict=True):
        node.outputs[0].shape = ir.Shape([*shape, *dims])
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return model


def inputs(count: int) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(count, 3, 6, 5)).astype(np.float32)


def activations(model: ir.Model, x: np.ndarray, names: list[str]) -> Arrays:
    """Every wanted tensor in full, the plain way."""
    model = model.clone()
    model.graph.outputs.clear()
    for node in model.graph:
        for value in node.outputs:
            if value.name in names:
                model.graph.outputs.append(value)
    session = open_session(model, optimise=False)
    found = [output.name for output in session.get_outputs()]
    return dict(zip(found, session.run(found, {"x": x}), strict=True))


TENSORS = ["x", "conv", "relu", "y"]


@pytest.mark.parametrize("opset", [13, 18])
def test_limits_are_exact_and_histograms_are_of_all_small_tensors(opset: int) -> None:
    model, x = network(opset=opset), inputs(10)
    found = calibrate(model, TENSORS, Rows({"x": x}), 4, ["conv"], workers=1)
    expected = activations(model, x, TENSORS) | {"x": x}
    assert list(found) == TENSORS
    for name, statistics in found.items():
        # Other kernels run once the tensor is an output: the last bits may differ.
        # The graph shows that what comes behind a Relu is never negative.
        lowest = 0.0 if name in ("relu", "y") else expected[name].min()
        assert statistics.minimum == pytest.approx(lowest, rel=1e-5)
        assert statistics.maximum == pytest.approx(expected[name].max(), rel=1e-5)
        assert statistics.histogram.total == expected[name].size
        assert statistics.mean == pytest.approx(
            expected[name].mean(), abs=statistics.histogram.width
        )
        assert statistics.finite
    assert found["relu"].histogram.zeros == np.count_nonzero(expected["relu"] == 0)


@pytest.mark.parametrize("opset", [13, 18])
def test_channels_are_exact_where_asked_for(opset: int) -> None:
    model, x = network(opset=opset), inputs(10)
    # "x" is wanted for its channels alone; "y" has two dimensions; batches of 4, 4 and 2.
    names = ["relu", "x", "y"]
    found = calibrate(model, ["conv"], Rows({"x": x}), 4, names, [*names, "pooled"], workers=1)
    expected = activations(model, x, ["relu", "y"]) | {"x": x}
    assert found["conv"].channel_maximum is None
    assert found["conv"].channel_mean is None
    assert not found["pooled"].has_range
    np.testing.assert_allclose(found["pooled"].channel_mean, found["y"].channel_mean, rtol=1e-6)
    for name in ("relu", "x", "y"):
        axes = tuple(axis for axis in range(expected[name].ndim) if axis != 1)
        statistics = found[name]
        lowest = expected[name].min(axes) * (name == "x")
        np.testing.assert_allclose(statistics.channel_minimum, lowest, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(statistics.channel_maximum, expected[name].max(axes), rtol=1e-5)
        np.testing.assert_allclose(
            statistics.channel_mean, expected[name].mean(axes), rtol=1e-4, atol=1e-5
        )
        assert statistics.channel_samples == 10


def test_the_number_of_workers_changes_nothing() -> None:
    model, rows = network(), Rows({"x": inputs(23)})
    one = calibrate(model, TENSORS, rows, 4, ["conv"], ["conv"], workers=1)
    three = calibrate(model, TENSORS, rows, 4, ["conv"], ["conv"], workers=3)
    for name in TENSORS:
        assert (one[name].minimum, one[name].maximum) == (three[name].minimum, three[name].maximum)
        np.testing.assert_array_equal(one[name].histogram.counts, three[name].histogram.counts)
    np.testing.assert_array_equal(one["conv"].channel_mean, three["conv"].channel_mean)


def test_the_model_is_not_changed() -> None:
    model = network()
    before = ir.to_proto(model).SerializeToString()
    calibrate(model, TENSORS, Rows({"x": inputs(2)}), 2, TENSORS[:2], workers=1)
    assert ir.to_proto(model).SerializeToString() == before


def test_a_model_of_fixed_batch_is_taken() -> None:
    x = inputs(3)
    found = calibrate(network("1"), ["x", "y"], Rows({"x": x}, fixed=1), 8, workers=2)
    assert found["x"].maximum == x.max()
    assert found["x"].histogram.total == x.size


def test_progress_counts_samples() -> None:
    seen: list[int] = []
    calibrate(network(), ["y"], Rows({"x": inputs(10)}), 4, workers=2, on_batch=seen.append)
    assert seen == [4, 8, 10]


def test_nothing_wanted_nothing_run() -> None:
    assert calibrate(network(), [], Rows({"x": inputs(1)}), 1) == {}


def test_large_tensors_are_sampled_by_a_prime_stride() -> None:
    model = ir.from_onnx_text("""
        <ir_version: 8, opset_import: ["" : 13]>
        net (float[N, 3, 64, 64] x) => (float[N, 3, 64, 64] y) { y = Relu (x) }""")
    x = np.random.default_rng(0).normal(size=(32, 3, 64, 64)).astype(np.float32)
    found = calibrate(model, ["x", "y"], Rows({"x": x}), 32, workers=1)
    stride = stride_for(model.graph.inputs[0].shape, 32)
    expected = Histogram()
    expected.add(x.reshape(-1)[::stride])
    np.testing.assert_array_equal(found["x"].histogram.counts, expected.counts)
    assert 0.7 * VALUES_PER_BATCH < expected.total <= VALUES_PER_BATCH
    assert (found["x"].minimum, found["x"].maximum) == (x.min(), x.max())


@pytest.mark.parametrize(
    ("dims", "stride"),
    [
        (["N", 10], 1),
        ([], 1),
        (["N", VALUES_PER_BATCH], 11),
        ([2, VALUES_PER_BATCH], 2),
        (["N", "T"], 17),
    ],
)
def test_stride(dims: list[str | int], stride: int) -> None:
    assert stride_for(ir.Shape(dims), 8) == stride


def test_scalars_integers_and_float16_are_taken() -> None:
    model = ir.from_onnx_text("""
        <ir_version: 8, opset_import: ["" : 13]>
        net (float16[N, 2] x, int64[N] k) => (float16 y) { y = ReduceMax <keepdims = 0> (x) }""")
    x = np.arange(6, dtype=np.float16).reshape(3, 2)
    rows = Rows({"x": x, "k": np.array([3, -4, 0])})
    found = calibrate(model, ["x", "y", "k"], rows, 3, workers=1)
    assert (found["x"].minimum, found["x"].maximum) == (0.0, 5.0)
    assert found["y"].maximum == 5.0
    assert (found["k"].minimum, found["k"].maximum) == (-4.0, 3.0)


def test_infinities_and_nan_are_noted_and_kept_out_of_the_histogram() -> None:
    x = np.array([[0.5, -np.inf, 2.0]], np.float32)
    model = ir.from_onnx_text("""
        <ir_version: 8, opset_import: ["" : 13]>
        net (float[N, 3] x) => (float[N, 3] y) { y = Exp (x) }""")
    found = calibrate(model, ["x", "y"], Rows({"x": x}), 1, workers=1)
    assert not found["x"].finite
    assert found["x"].minimum == -np.inf
    assert found["x"].histogram.total == 2
    assert found["y"].finite
    statistics = TensorStatistics()
    statistics.update(0.0, 1.0, np.array([0.5, np.nan], np.float32))
    assert not statistics.finite


@pytest.mark.parametrize(
    ("tensors", "channel_tensors", "message"),
    [(["z"], [], "tensor 'z' is not in the main graph"), ([], ["y"], "has the rank '1'")],
)
def test_refusals_name_the_tensor(
    tensors: list[str], channel_tensors: list[str], message: str
) -> None:
    model = ir.from_onnx_text("""
        <ir_version: 8, opset_import: ["" : 13]>
        net (float[N] x) => (float[N] y) { y = Relu (x) }""")
    with pytest.raises(ValueError, match=message):
        calibrate(model, tensors, Rows({"x": np.zeros(2, np.float32)}), 2, channel_tensors)


def test_a_tensor_before_leaky_relu_is_observed_behind_it() -> None:
    model = ir.from_onnx_text("""
        <ir_version: 8, opset_import: ["" : 13]>
        net (float[N, 3, 4, 4] x) => (float[N, 3, 4, 4] y) {
            a = Neg (x) l = LeakyRelu <alpha = 0.1> (a) y = Neg (l)
        }""")
    for node in model.graph:
        node.outputs[0].shape, node.outputs[0].type = (
            model.graph.inputs[0].shape,
            model.graph.inputs[0].type,
        )
    _, (observer,) = observe(model, ["a"], set(), set(), 4)
    assert observer.maximum.startswith("l/")
    rows = Rows({"x": np.random.default_rng(0).normal(size=(8, 3, 4, 4)).astype(np.float32)})
    found = calibrate(model, ["a"], rows, 4, ["a"])["a"]
    direct = calibrate(model, ["a"], rows, 4, means=["a"])["a"]
    assert (found.minimum, found.maximum) == pytest.approx((direct.minimum, direct.maximum))
    assert found.mean == pytest.approx(direct.mean, abs=1e-3)
    assert found.channel_mean is None
    assert direct.channel_mean is not None


def test_drawn_elements_are_bounded() -> None:
    drawn, values = Drawn(), np.linspace(0.0, 1.0, 1000, dtype=np.float32)
    for _ in range(MOST_DRAWN // 100):
        drawn.add(values, np.arange(1000, dtype=np.int32) % 7)
    histogram = drawn.scaled(np.arange(7.0)).histogram()
    assert MOST_DRAWN / 4 < histogram.total <= MOST_DRAWN
    assert histogram.mean == pytest.approx(1.5, rel=0.02)


def test_the_observed_model_gives_no_whole_activation() -> None:
    observed, observers = observe(network(), TENSORS, set(), set(), 512)
    names = {name for observer in observers for name in observer.outputs}
    assert {output.name for output in observed.graph.outputs} == names
    assert not names & set(TENSORS)


def test_the_deepest_tensor_is_observed_first() -> None:
    """The session's order follows; the other way round every activation lives to the end."""
    observed, observers = observe(network(), TENSORS, {"conv"}, set(), 2)
    assert [observer.tensor for observer in observers] == TENSORS
    order = list(dict.fromkeys(str(o.name).split("/")[0] for o in observed.graph.outputs))
    assert order == ["y", "relu", "conv", "x"]


def test_calibrated_resnet_has_sane_statistics(assets: object) -> None:
    path = f"{assets}/models/cifar10_resnet20.onnx"
    images = np.load(f"{assets}/cifar10/unlabelled.npz")["images"][:16]
    x = (images.transpose(0, 3, 1, 2) / np.float32(127.5) - 1).astype(np.float32)
    model = ir.load(path)
    relus = [str(node.outputs[0].name) for node in model.graph if node.op_type == "Relu"]
    found = calibrate(model, ["input", *relus], Rows({"input": x}), 8, relus, workers=1)
    assert (found["input"].minimum, found["input"].maximum) == (x.min(), x.max())
    for name in relus:
        assert found[name].minimum >= 0.0
        assert found[name].histogram.zeros > 0
        channels = found[name].channel_maximum
        assert channels is not None
        assert channels.max() == found[name].maximum


def test_a_moved_batch_is_known_by_its_name() -> None:
    assert stride_for(ir.Shape([4, "N"]), 8) == 17
    assert stride_for(ir.Shape([4, "N"]), 8, frozenset("N")) == 1
