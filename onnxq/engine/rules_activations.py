"""Gradients of functions of one number; for most, dx = G times the slope at x."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from onnxq.engine.builder import Builder
from onnxq.engine.form import Form, Gradients, Rule
from onnxq.engine.kernels import MICROSOFT

SELU_ALPHA, SELU_GAMMA = 1.6732632423543772, 1.0507009873554805

Slope = Callable[[Form, Builder, ir.Value, ir.Value], ir.Value]
"""The slope of y = f(x), from the form, the builder, x and y."""


def _gelu(form: Form, b: Builder, x: ir.Value, y: ir.Value) -> ir.Value:
    """F + x f, the distribution function and the density of a normal number, or the like."""
    if form.text("approximate", "none") == "tanh":
        return _tanh_gelu(b, x)
    distribution = b.op("Add", b.op("Mul", b.op("Erf", b.op("Mul", x, 0.5**0.5)), 0.5), 0.5)
    density = b.op("Exp", b.op("Mul", b.op("Mul", x, x), -0.5))
    scaled = b.op("Mul", density, 1 / math.sqrt(2 * math.pi))
    return b.op("Add", distribution, b.op("Mul", x, scaled))


def _tanh_gelu(b: Builder, x: ir.Value) -> ir.Value:
    """Y = x (1 + t) / 2, t = tanh(c x (1 + k x²)): (1 + t) / 2 + x (1 - t²) c (1 + 3 k x²) / 2."""
    c, k = math.sqrt(2 / math.pi), 0.044715
    square = b.op("Mul", x, x)
    inner = b.op("Mul", b.op("Mul", x, c), b.op("Add", b.op("Mul", square, k), 1.0))
    t = b.op("Tanh", inner)
    half = b.op("Add", b.op("Mul", t, 0.5), 0.5)
    slope = b.op("Mul", b.op("Add", b.op("Mul", square, 3 * k), 1.0), c / 2)
    rest = b.op("Sub", 1.0, b.op("Mul", t, t))
    return b.op("Add", half, b.op("Mul", b.op("Mul", x, rest), slope))


def _hard_swish(form: Form, b: Builder, x: ir.Value, y: ir.Value) -> ir.Value:
    """Y = x clip(u, 0, 1), u = x / 6 + 1/2: clip(u, 0, 1) + m x / 6."""
    sixth = b.op("Mul", x, 1 / 6)
    u = b.op("Add", sixth, 0.5)
    return b.op("Add", b.op("Clip", u, 0.0, 1.0), b.op("Mul", sixth, _inside_unit(b, u)))


def _mish(form: Form, b: Builder, x: ir.Value, y: ir.Value) -> ir.Value:
    """Y = x t, t = tanh(softplus(x)): t + x (1 - t²) sigmoid(x)."""
    t = b.op("Tanh", b.op("Softplus", x))
    rest = b.op("Sub", 1.0, b.op("Mul", t, t))
    return b.op("Add", t, b.op("Mul", b.op("Mul", x, rest), b.op("Sigmoid", x)))


def _softsign(form: Form, b: Builder, x: ir.Value, y: ir.Value) -> ir.Value:
    """1 / (1 + |x|)²."""
    size = b.op("Add", b.op("Abs", x), 1.0)
    return b.op("Reciprocal", b.op("Mul", size, size))


def _exponential(
    b: Builder, x: ir.Value, y: ir.Value, above: float, factor: float, offset: float
) -> ir.Value:
    """``above`` over zero, factor y + offset below: Elu, Selu and Celu."""
    mask = b.positive(x)
    below = b.op("Add", b.op("Mul", y, factor), offset)
    return b.op("Add", b.op("Mul", mask, above), b.op("Mul", b.op("Sub", 1.0, mask), below))


def _elu(form: Form, b: Builder, x: ir.Value, y: ir.Value) -> ir.Value:
    return _exponential(b, x, y, 1.0, 1.0, form.number("alpha", 1.0))


def _selu(form: Form, b: Builder, x: ir.Value, y: ir.Value) -> ir.Value:
    gamma = form.number("gamma", SELU_GAMMA)
    return _exponential(b, x, y, gamma, 1.0, gamma * form.number("alpha", SELU_ALPHA))


def _celu(form: Form, b: Builder, x: ir.Value, y: ir.Value) -> ir.Value:
    return _exponential(b, x, y, 1.0, 1.0 / form.number("alpha", 1.0), 1.0)


def _hard_sigmoid(form: Form, b: Builder, x: ir.Value, y: ir.Value) -> ir.Value:
    return b.op("Mul", _inside_unit(b, y), form.number("alpha", 0.2))


def _inside_unit(b: Builder, value: ir.Value) -> ir.Value:
    """1 where 0 < value < 1."""
    return b.positive(b.op("Mul", value, b.op("Sub", 1.0, value)))


SLOPES: dict[str, Slope] = {
    "Abs": lambda form, b, x, y: b.op("Sign", x),
    "Celu": _celu,
    "Cos": lambda form, b, x, y: b.op("Neg", b.op("Sin", x)),
    "Elu": _elu,
    "Erf": lambda form, b, x, y: b.op(
        "Mul", b.op("Exp", b.op("Neg", b.op("Mul", x, x))), 2 / math.sqrt(math.pi)
    ),
    "Exp": lambda form, b, x, y: y,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Log": lambda form, b, x, y: b.op("Reciprocal", x),
    "Mish": _mish,
    "Reciprocal": lambda form, b, x, y: b.op("Neg", b.op("Mul", y, y)),
    "Selu": _selu,
    "Sigmoid": lambda form, b, x, y: b.op("Mul", y, b.op("Sub", 1.0, y)),
    "Sin": lambda form, b, x, y: b.op("Cos", x),
    "Softplus": lambda form, b, x, y: b.op("Sigmoid", x),
    "Softsign": _softsign,
    "Sqrt": lambda form, b, x, y: b.op("Div", 0.5, y),
    "Tanh": lambda form, b, x, y: b.op("Sub", 1.0, b.op("Mul", y, y)),
    "ThresholdedRelu": lambda form, b, x, y: b.positive(b.op("Sub", x, form.number("alpha", 1.0))),
}


def _times(slope: Slope) -> Rule:
    def write(form: Form, b: Builder) -> Gradients:
        return {0: b.op("Mul", b.gradient(), slope(form, b, b.input(), b.output()))}

    return Rule(write)


def _straight_through(form: Form, b: Builder) -> Gradients:
    """Dx = G: the slope of the identity stands for the steps' (Bengio et al. 2013)."""
    return {0: b.gradient()}


def _relu(form: Form, b: Builder) -> Gradients:
    """Dx = G where y > 0."""
    if b.training_kernels:
        return {0: b.op("ReluGrad", b.gradient(), b.output(), domain=MICROSOFT)}
    return {0: b.op("Mul", b.gradient(), b.op("Sign", b.output()))}


def _leaky(form: Form, b: Builder) -> Gradients:
    """Dx = G where y > 0, alpha G elsewhere."""
    alpha = form.number("alpha", 0.01)
    if b.training_kernels and alpha > 0:
        attributes = {"alpha": alpha}
        inputs = (b.gradient(), b.output())
        return {0: b.op("LeakyReluGrad", *inputs, domain=MICROSOFT, attributes=attributes)}
    slope = b.op("Add", b.op("Mul", b.positive(b.input()), 1 - alpha), alpha)
    return {0: b.op("Mul", b.gradient(), slope)}


def _training_dropout(form: Form) -> str | None:
    if form.has(2) and (form.constant(2) is None or bool(form.constant(2))):
        return "it drops values at random"
    return None


ACTIVATIONS = {
    **{op_type: _times(slope) for op_type, slope in SLOPES.items()},
    **dict.fromkeys(("Ceil", "Floor", "Identity", "Round", "Sign"), Rule(_straight_through)),
    "Dropout": Rule(_straight_through, _training_dropout),
    "LeakyRelu": Rule(_leaky),
    "Neg": Rule(lambda form, b: {0: b.op("Neg", b.gradient())}),
    "Relu": Rule(_relu),
}
