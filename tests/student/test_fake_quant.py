"""The fake-quant functions: same arithmetic as numpy, gradients of their surrogate."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.engine import Engine
from onnxq.graph import fake_quant
from onnxq.numerics.quantizers import ACTIVATIONS, Kind, Range

PARAMETERS = {
    "asymmetric": {"lowest": -0.83, "width": 2.31},
    "positive": {"width": 1.37},
    "symmetric": {"threshold": 1.19},
}


def student(kind: Kind, num_bits: int, opset: int = 13, body_opset: int = 13):
    """Loss = sum(w * fake_quant(x, parameters)), with y as a second output."""
    parameters = [ir.val(name, ir.DataType.FLOAT, []) for name in ACTIVATIONS[kind].parameters]
    x, w = (ir.val(name, ir.DataType.FLOAT, ["N"]) for name in "xw")
    call = fake_quant.call(kind, num_bits, x, *parameters)
    product = ir.node("Mul", [call.outputs[0], w])
    total = ir.node("ReduceSum", product.outputs, {"keepdims": 0})
    y, loss = call.outputs[0], total.outputs[0]
    y.name, loss.name = "y", "loss"
    y.dtype, y.shape = ir.DataType.FLOAT, ir.Shape(["N"])
    loss.dtype, loss.shape = ir.DataType.FLOAT, ir.Shape([])
    graph = ir.Graph(
        [x, *parameters, w],
        [loss, y],
        nodes=[call, product, total],
        opset_imports={"": opset, fake_quant.DOMAIN: 1},
        name="student",
    )
    functions = [fake_quant.function(kind, num_bits, body_opset)]
    return ir.Model(graph, ir_version=8, functions=functions)


def affine_range(kind: str, num_bits: int, parameters: dict[str, float]) -> tuple[float, float]:
    """Lowest value and width of the affine quantizer that a kind stands for."""
    if kind == "symmetric":
        codes = 2 ** (num_bits - 1)
        scale = np.float32(parameters["threshold"]) / np.float32(codes - 1)
        return -float(scale) * codes, float(scale) * (2**num_bits - 1)
    return parameters.get("lowest", 0.0), parameters["width"]


def run(kind, num_bits, x, w, parameters, trainable=None, **opsets):
    names = ["x", *parameters] if trainable is None else trainable
    engine = Engine(student(kind, num_bits, **opsets), names, extra_outputs=["y"], workers=1)
    values = {"x": x, **{k: np.float32(v) for k, v in parameters.items()}}
    feeds = {"w": w, **{k: v for k, v in values.items() if k not in names}}
    _, gradients = engine.gradients({k: values[k] for k in names}, [feeds])
    return engine.extras[0]["y"], gradients


def fake_quant_affine(x: np.ndarray, lowest: float, width: float, num_bits: int) -> np.ndarray:
    """What QuantizeLinear and DequantizeLinear make of x over [lowest, lowest + width]."""
    quantizer = ACTIVATIONS["asymmetric"]
    scale, zero_point = quantizer.scale_and_zero_point(Range(lowest, width), num_bits)
    codes = np.clip(np.rint(x / scale) + zero_point, 0, quantizer.largest(num_bits))
    return ((codes - zero_point) * scale).astype(np.float32)


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(0, 1.5, 4000), [0.0]]).astype(np.float32)
    return x, rng.normal(size=x.size).astype(np.float32)


@pytest.mark.parametrize("kind", PARAMETERS)
@pytest.mark.parametrize("num_bits", [2, 4, 7, 8])
def test_forward_is_numpys(kind, num_bits, data):
    y, _ = run(kind, num_bits, *data, PARAMETERS[kind])
    lowest, width = affine_range(kind, num_bits, PARAMETERS[kind])
    if kind == "symmetric":
        scale = np.float32(PARAMETERS[kind]["threshold"]) / np.float32(2 ** (num_bits - 1) - 1)
        half = 2 ** (num_bits - 1)
        codes = np.clip(np.rint(data[0] / scale), -half, half - 1)
        expected = (codes * scale).astype(np.float32)
    else:
        expected = fake_quant_affine(data[0], lowest, width, num_bits)
    np.testing.assert_array_equal(y, expected)


@settings(deadline=None, max_examples=15)
@given(
    lowest=st.floats(-5, 0, width=32),
    width=st.floats(0.015625, 8, width=32),
    values=st.lists(st.floats(-16, 16, width=32), min_size=1, max_size=20),
)
def test_forward_is_numpys_for_any_range(lowest, width, values):
    x = np.array(values, np.float32)
    y, _ = run("asymmetric", 8, x, np.ones_like(x), {"lowest": lowest, "width": width}, ["lowest"])
    np.testing.assert_array_equal(y, fake_quant_affine(x, lowest, width, 8))


@pytest.mark.parametrize("kind", PARAMETERS)
@pytest.mark.parametrize("num_bits", [4, 8])
def test_gradients_are_those_of_the_straight_through_quantizer(kind, num_bits, data):
    x, w = data
    y, gradients = run(kind, num_bits, x, w, PARAMETERS[kind])
    lowest, width = affine_range(kind, num_bits, PARAMETERS[kind])
    quantizer = ACTIVATIONS["asymmetric"]
    scale, zero_point = quantizer.scale_and_zero_point(Range(lowest, width), num_bits)
    low, high = -scale * zero_point, scale * (2**num_bits - 1 - zero_point)
    inside = (x > low - scale / 2) & (x < high + scale / 2)
    if kind == "positive":
        inside &= x > 0
    np.testing.assert_array_equal(gradients["x"], w * inside)
    w64 = w.astype(np.float64)
    if kind == "asymmetric":
        np.testing.assert_allclose(gradients["lowest"], (w64 * ~inside).sum(), rtol=1e-4)
        slope = np.where(inside, (y - x) / width, x > high)
        np.testing.assert_allclose(gradients["width"], (w64 * slope).sum(), rtol=1e-4)
    else:
        (parameter,) = PARAMETERS[kind].values()
        slope = (y - np.where(inside, x, 0.0)) / parameter
        np.testing.assert_allclose(
            gradients[next(iter(PARAMETERS[kind]))], (w64 * slope).sum(), rtol=1e-4
        )


@pytest.mark.parametrize(
    "trainable", [["x"], ["lowest"], ["width"], ["lowest", "width"], ["x", "width"], ["width", "x"]]
)
def test_any_part_of_the_inputs_can_be_trained(trainable, data):
    _, every = run("asymmetric", 8, *data, PARAMETERS["asymmetric"])
    _, some = run("asymmetric", 8, *data, PARAMETERS["asymmetric"], trainable)
    assert set(some) == set(trainable)
    for name, gradient in some.items():
        np.testing.assert_array_equal(gradient, every[name])
        assert gradient.shape == every[name].shape == (() if name != "x" else data[0].shape)


@pytest.mark.parametrize(("opset", "body_opset"), [(17, 13), (18, 18), (21, 21)])
def test_opsets(opset, body_opset, data):
    y, gradients = run("asymmetric", 4, *data, PARAMETERS["asymmetric"])
    again, others = run(
        "asymmetric", 4, *data, PARAMETERS["asymmetric"], opset=opset, body_opset=body_opset
    )
    np.testing.assert_array_equal(y, again)
    np.testing.assert_array_equal(gradients["width"], others["width"])


def test_names_round_trip():
    for kind in ACTIVATIONS:
        name = fake_quant.function_name(kind, 5)
        assert fake_quant.parse_function_name(name) == (kind, 5)
    assert fake_quant.parse_function_name("Relu") is None
    with pytest.raises(ValueError, match="num_bits is 9"):
        fake_quant.function_name("positive", 9)
