from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_graphs import Feeds

from onnxq.calibrate.calibrator import calibrate
from onnxq.forms.equalize import HEADROOM, equalize, find_pairs
from onnxq.normalise.infer_shapes import InferShapes
from onnxq.runtime.session import open_session

HEADER = '<ir_version: 8, opset_import: ["" : 13]>'


def build(text: str, weights: Mapping[str, np.ndarray | tuple[int, ...]]) -> ir.Model:
    """A model of ONNX text; a shape stands for weights of very different channel ranges."""
    rng = np.random.default_rng(3)
    tensors = []
    for name, given in weights.items():
        array = given if isinstance(given, np.ndarray) else uneven(rng, given)
        tensors.append(ir.tensor(array.astype(np.float32), name=name))
    model = ir.from_onnx_text(f"{HEADER} {text}", initializers=tensors)
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{index}"
    return model


def uneven(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    spread = np.exp(rng.uniform(-3, 3, (shape[0], *[1] * (len(shape) - 1))))
    return np.asarray(rng.normal(size=shape) * spread)


def outputs(model: ir.Model, x: np.ndarray) -> np.ndarray:
    return np.asarray(open_session(model, optimise=False).run(None, {"x": x})[0])


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def assert_equal_outputs(one: ir.Model, other: ir.Model, x: np.ndarray) -> None:
    expected = outputs(one, x)
    # Weights are scaled in float64 and rounded to float32 once.
    tolerance = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(outputs(other, x), expected, rtol=0, atol=tolerance)


def weight_ratio(model: ir.Model, name: str, axis: int = 0) -> float:
    weight = np.abs(model.graph.initializers[name].const_value.numpy())  # type: ignore[union-attr]
    ranges = weight.max(axis=tuple(i for i in range(weight.ndim) if i != axis))
    return float(ranges.max() / ranges.min())


def scaled_channels(model: ir.Model, equalized: ir.Model, axis: int = 0) -> int:
    """How many output channels of the weight w1 were scaled."""
    one, other = (m.graph.initializers["w1"].const_value.numpy() for m in (model, equalized))  # type: ignore[union-attr]
    pairs = zip(np.moveaxis(one, axis, 0), np.moveaxis(other, axis, 0), strict=True)
    return sum(not np.array_equal(*pair) for pair in pairs)


def conv_pair(between: str, **more: np.ndarray) -> ir.Model:
    """Two convolutions around nodes that lead from `a` to `z`."""
    text = f"""net (float[N, 3, 8, 8] x) => (float[N, M, H, W] y) {{
        a = Conv (x, w1, b1)
        {between}
        y = Conv (z, w2, b2)
    }}"""
    shapes = {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (4, 6, 1, 1), "b2": (4,)}
    return build(text, shapes | more)


BETWEEN = {
    "nothing": "",
    "relu": "z = Relu (a)",
    "leaky": "z = LeakyRelu <alpha = 0.2> (a)",
    "prelu": "z = PRelu (a, slope)",
    "max_pool": "r = Relu (a) z = MaxPool <kernel_shape = [2, 2]> (r)",
    "average_pool": "r = Relu (a) z = AveragePool <kernel_shape = [2, 2]> (r)",
    "global_pool": "r = Relu (a) z = GlobalAveragePool (r)",
}


def between_model(name: str) -> ir.Model:
    if name == "nothing":
        text = """net (float[N, 3, 8, 8] x) => (float[N, 4, H, W] y) {
            z = Conv (x, w1, b1)
            y = Conv (z, w2)
        }"""
        return build(text, {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (4, 6, 1, 1)})
    slope = {"slope": np.array([0.1])} if name == "prelu" else {}
    return conv_pair(BETWEEN[name], **slope)


@pytest.mark.parametrize("name", BETWEEN)
def test_applies_and_keeps_the_function(name: str) -> None:
    model = between_model(name)
    before = ir.to_proto(model).SerializeToString()
    equalized = equalize(model, {}, "safe").model
    assert scaled_channels(model, equalized) == 6
    assert weight_ratio(equalized, "w1") < 0.5 * weight_ratio(model, "w1")
    assert_equal_outputs(model, equalized, images(2, 3, 8, 8))
    onnx.checker.check_model(ir.to_proto(equalized))
    assert ir.to_proto(model).SerializeToString() == before


def test_the_second_run_changes_nothing() -> None:
    equalized = equalize(between_model("relu"), {}, "safe").model
    again = equalize(equalized, {}, "safe").model
    for name in ("w1", "w2", "b1"):
        np.testing.assert_allclose(
            again.graph.initializers[name].const_value.numpy(),  # type: ignore[union-attr]
            equalized.graph.initializers[name].const_value.numpy(),  # type: ignore[union-attr]
            rtol=2e-3,
        )


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_chain(multiplier: int) -> None:
    channels = 5 * multiplier
    model = build(
        """net (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
            a = Conv (x, w1, b1)
            r = Relu (a)
            d = Conv <group = 5, pads = [1, 1, 1, 1]> (r, w2, b2)
            s = Relu (d)
            y = Conv (s, w3)
        }""",
        {
            "w1": (5, 3, 1, 1),
            "b1": (5,),
            "w2": (channels, 1, 3, 3),
            "b2": (channels,),
            "w3": (4, channels, 1, 1),
        },
    )
    assert [pair.channels for pair in find_pairs(model)] == [5, channels]
    equalized = equalize(model, {}, "safe").model
    assert_equal_outputs(model, equalized, images(2, 3, 8, 8))
    assert weight_ratio(equalized, "w2") < 0.5 * weight_ratio(model, "w2")


def test_grouped_convolution() -> None:
    model = build(
        """net (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
            a = Conv (x, w1)
            r = Relu (a)
            y = Conv <group = 2> (r, w2)
        }""",
        {"w1": (6, 3, 1, 1), "w2": (4, 3, 1, 1)},
    )
    equalized = equalize(model, {}, "safe").model
    assert_equal_outputs(model, equalized, images(2, 3, 8, 8))


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("bias", [(6,), (1, 6), (1,)])
def test_gemm_pair(first: int, second: int, bias: tuple[int, ...]) -> None:
    w1, w2 = (6, 5) if first else (5, 6), (4, 6) if second else (6, 4)
    model = build(
        f"""net (float[N, 5] x) => (float[N, 4] y) {{
            a = Gemm <transB = {first}> (x, w1, b1)
            r = Relu (a)
            y = Gemm <transB = {second}, alpha = 0.5> (r, w2)
        }}""",
        {"w1": w1, "b1": bias, "w2": w2},
    )
    equalized = equalize(model, {}, "safe").model
    assert scaled_channels(model, equalized, 0 if first else 1) == 6
    assert_equal_outputs(model, equalized, images(3, 5))
    onnx.checker.check_model(ir.to_proto(equalized), full_check=True)


@pytest.mark.parametrize(
    "flatten", ["f = Flatten (r)", "f = Reshape (r, to)", "f = Reshape (r, whole)"]
)
def test_conv_to_gemm_through_flatten(flatten: str) -> None:
    """Each channel is several features of the Gemm, next to each other."""
    model = build(
        f"""net (float[N, 3, 4, 4] x) => (float[N, 4] y) {{
            a = Conv (x, w1, b1)
            r = Relu (a)
            {flatten}
            y = Gemm (f, w2)
        }}""",
        {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (24, 4)},
    )
    for name, target in (("to", [0, -1]), ("whole", [-1, 24])):
        if name in flatten:
            reshape = next(node for node in model.graph if node.op_type == "Reshape")
            value = reshape.inputs[1]
            assert value is not None
            value.const_value = ir.tensor(np.array(target), name=name)
            model.graph.register_initializer(value)
            assert reshape.inputs[0] is not None
            reshape.inputs[0].shape = ir.Shape(["N", 6, 2, 2])
    equalized = equalize(model, {}, "safe").model
    assert scaled_channels(model, equalized) == 6
    assert_equal_outputs(model, equalized, images(2, 3, 4, 4))


BOUNDS = {"zero": np.array(0.0), "six": np.array(6.0)}
RELU6 = "z = Clip (a, zero, six)"


def clip_maximum(model: ir.Model, x: np.ndarray) -> np.ndarray:
    """The largest value of each channel behind the Clip."""
    model = model.clone()
    model.graph.outputs.clear()
    value = next(node.outputs[0] for node in model.graph if node.op_type == "Clip")
    model.graph.outputs.append(value)
    value.type = ir.TensorType(ir.DataType.FLOAT)
    return np.asarray(outputs(model, x).max(axis=(0, 2, 3)))


def relu6_model() -> ir.Model:
    """Six channels: the first three reach 6, the others stay far below."""
    rng = np.random.default_rng(5)
    gain = np.array([3.0, 2.0, 5.0, 0.02, 0.1, 0.2]).reshape(-1, 1, 1, 1)
    w1 = gain * rng.uniform(0.5, 1, (6, 3, 3, 3)) * rng.choice([-1, 1], (6, 3, 3, 3))
    return conv_pair(RELU6, w1=w1, b1=np.full(6, 0.01), **BOUNDS)


def test_relu6_safe_leaves_channels_that_reach_the_bound() -> None:
    model, x = relu6_model(), images(4, 3, 8, 8)
    maximum = clip_maximum(model, x)
    assert (maximum >= 6).tolist() == [True] * 3 + [False] * 3
    equalized = equalize(model, {"z": maximum}, "safe").model
    one, other = (m.graph.initializers["w1"].const_value for m in (model, equalized))
    assert one is not None
    assert other is not None
    np.testing.assert_array_equal(other.numpy()[:3], one.numpy()[:3])
    assert not np.allclose(other.numpy()[3:], one.numpy()[3:])
    assert clip_maximum(equalized, x)[3:].max() <= HEADROOM * 6 + 1e-4
    assert_equal_outputs(model, equalized, x)
    assert "Clip" in {node.op_type for node in equalized.graph}


def test_relu6_safe_needs_the_calibrated_maximum() -> None:
    model = relu6_model()
    equalized = equalize(model, {}, "safe").model
    assert ir.to_proto(equalized).SerializeToString() == ir.to_proto(model).SerializeToString()


def test_relu6_replaced_is_the_same_net_with_relu() -> None:
    model = relu6_model()
    with_relu = relu6_model()
    clip = next(node for node in with_relu.graph if node.op_type == "Clip")
    clip.replace_input_with(2, None)
    equalized = equalize(model, {}, "replace").model
    assert scaled_channels(model, equalized) == 6
    assert_equal_outputs(with_relu, equalized, images(4, 3, 8, 8))
    assert [node.op_type for node in equalized.graph] == ["Conv", "Relu", "Conv"]
    assert [node.outputs[0].name for node in equalized.graph] == ["a", "z", "y"]
    assert "six" not in equalized.graph.initializers
    onnx.checker.check_model(ir.to_proto(equalized))


def test_a_clip_without_an_upper_bound_is_a_relu() -> None:
    model = conv_pair("z = Clip (a, zero)", zero=np.array(0.0))
    equalized = equalize(model, {}, "safe").model
    assert weight_ratio(equalized, "w1") < weight_ratio(model, "w1")
    assert_equal_outputs(model, equalized, images(2, 3, 8, 8))


def test_no_channel_outgrows_the_largest_of_its_tensor() -> None:
    """A channel of tiny weights under a large bias is not scaled up."""
    w1 = np.ones((6, 3, 3, 3))
    w1[0] = 1e-3
    model = conv_pair("z = Relu (a)", w1=w1, b1=np.full(6, 5.0), w2=np.ones((4, 6, 1, 1)))
    maximum = np.array([5.0, 20.0, 20.0, 20.0, 20.0, 20.0])
    equalized = equalize(model, {"z": maximum}, "safe").model
    bias = equalized.graph.initializers["b1"].const_value
    assert bias is not None
    assert bias.numpy()[0] == pytest.approx(20.0)
    assert_equal_outputs(model, equalized, images(2, 3, 8, 8))


REFUSALS = {
    "shared weight": (
        "net (float[N, 6, 8, 8] x) => (float[N, 6, 8, 8] y) { a = Conv (x, w1) y = Conv (a, w1) }",
        {"w1": (6, 6, 1, 1)},
        "'w1' of 'Conv_0' is shared",
    ),
    "two readers": (
        """net (float[N, 6, 8, 8] x) => (float[N, 6, 8, 8] y) {
            a = Conv (x, w1) b = Conv (a, w2) y = Add (a, b) }""",
        {"w1": (6, 6, 1, 1), "w2": (6, 6, 1, 1)},
        "'a' is an output or not read exactly once",
    ),
    "graph output": (
        """net (float[N, 6, 8, 8] x) => (float[N, 6, 8, 8] y, float[N, 6, 8, 8] a) {
            a = Conv (x, w1) y = Conv (a, w2) }""",
        {"w1": (6, 6, 1, 1), "w2": (6, 6, 1, 1)},
        "'a' is an output or not read exactly once",
    ),
    "sigmoid": (
        """net (float[N, 6, 8, 8] x) => (float[N, 6, 8, 8] y) {
            a = Conv (x, w1) b = Sigmoid (a) y = Conv (b, w2) }""",
        {"w1": (6, 6, 1, 1), "w2": (6, 6, 1, 1)},
        "'Sigmoid_1' of type 'Sigmoid' lies in the way",
    ),
    "clip from below zero": (
        """net (float[N, 6, 8, 8] x) => (float[N, 6, 8, 8] y) {
            a = Conv (x, w1) b = Clip (a, low) y = Conv (b, w2) }""",
        {"w1": (6, 6, 1, 1), "w2": (6, 6, 1, 1), "low": np.array(-1.0)},
        "'Clip_1' is not a Clip from 0 to a constant",
    ),
    "weight that is an input": (
        """net (float[N, 6, 8, 8] x, float[6, 6, 1, 1] w) => (float[N, 6, 8, 8] y) {
            a = Conv (x, w1) y = Conv (a, w) }""",
        {"w1": (6, 6, 1, 1)},
        "'w' of 'Conv_1' is not constant",
    ),
    "features that mix channels": (
        """net (float[N, 3, 4, 8] x) => (float[N, 3, 4, 5] y) {
            a = Conv (x, w1) b = Flatten <axis = 2> (a) y = Gemm (b, w2) }""",
        {"w1": (3, 3, 1, 1), "w2": (32, 5)},
        "'Flatten_1' of type 'Flatten' lies in the way",
    ),
    "input as weight": (
        "net (float[N, 6] x) => (float[M, 6] y) { a = Gemm (x, w1) y = Gemm (w2, a) }",
        {"w1": (6, 6), "w2": (6, 6)},
        "'a' is not the data input of 'Gemm_1'",
    ),
    "transposed input": (
        """net (float[6, N] x) => (float[N, 6] y) {
            a = Gemm <transA = 1> (x, w1) y = Gemm (a, w2) }""",
        {"w1": (6, 6), "w2": (6, 6)},
        "'Gemm_0' transposes its input",
    ),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_refuses_and_says_why(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    text, weights, message = REFUSALS[reason]
    model = build(text, weights)
    with caplog.at_level(logging.DEBUG, "onnxq.forms"):
        assert find_pairs(model) == []
    assert message in caplog.text
    equalized = equalize(model, {}, "replace").model
    assert ir.to_proto(equalized).SerializeToString() == ir.to_proto(model).SerializeToString()


FLATTENED = {
    "flatten": "f = Flatten (a)",
    "leaky": (
        "l = LeakyRelu <alpha = 0.2> (a) p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (l) "
        "f = Flatten (p)"
    ),
    "relu6": "c = Clip (a, zero, six) f = Flatten (c)",
}


@pytest.mark.parametrize("relu6", ["safe", "replace"])
@pytest.mark.parametrize("name", FLATTENED)
def test_statistics_of_the_form_follow_from_those_of_the_original(
    name: str, relu6: Literal["safe", "replace"]
) -> None:
    text = f"""net (float[N, 3, 8, 8] x) => (float[N, M] y) {{
        a = Conv (x, w1, b1)
        {FLATTENED[name]}
        y = Gemm (f, w2)
    }}"""
    features = 6 * (3 * 3 if name == "leaky" else 6 * 6)
    bounds = BOUNDS if name == "relu6" else {}
    model = build(text, {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (features, 4)} | bounds)
    InferShapes()(model)
    tensors = [str(node.outputs[0].name) for node in model.graph]
    samples = Feeds([{"x": images(16, 3, 8, 8)}])
    known = calibrate(model, tensors, samples, 16, tensors, tensors[1:])
    watched = find_pairs(model)[0].tensor
    form = equalize(model, {watched: known[watched].channel_maximum}, relu6)
    measured = calibrate(form.model, tensors, samples, 16, tensors, tensors[1:])
    derived = form.derived(known)
    reached = relu6 == "replace" and name == "relu6"
    assert set(tensors) - set(derived) == ({"c", "f", "y"} if reached else set())
    assert any(np.ptp(factor) > 0.1 for factor in form.factors.values())
    for tensor, found in derived.items():
        expected = measured[tensor]
        ends = (found.minimum, found.maximum, found.mean)
        assert ends == pytest.approx((expected.minimum, expected.maximum, expected.mean), rel=1e-2)
        for one in ("channel_minimum", "channel_maximum", "channel_mean"):
            if getattr(found, one) is None:
                assert (one, tensor) == ("channel_mean", "a")
                continue
            np.testing.assert_allclose(getattr(found, one), getattr(expected, one), 1e-4, 1e-5)
        assert found.histogram.total == expected.histogram.total
