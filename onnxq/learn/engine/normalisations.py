"""Gradients of normalisation layers at inference; G = dL/dy, s the scale, b the bias."""

from __future__ import annotations

from onnxq.learn.engine.definition import Definition
from onnxq.learn.engine.form import Form
from onnxq.learn.engine.rules import Rule

EPSILON = 1e-5


def _batch_normalization(form: Form, d: Definition) -> None:
    """Y = s (x - mean) / sd + b with sd = sqrt(var + eps), all per channel.

    dx = G s / sd;  db = sum G;  ds = sum G (x - mean) / sd;
    dmean = -db s / sd;  dvar = -s ds / (2 (var + eps)).
    """
    x, s, mean = d.input(0), d.input(1), d.input(3)
    rank = form.rank(0) or 0
    others = [axis for axis in range(rank) if axis != 1]
    variance = d.op("Add", d.input(4), d.scalar(form.real("epsilon", EPSILON)))
    deviation = d.op("Sqrt", variance)
    factor = d.op("Div", s, deviation)
    along = d.op("Reshape", factor, d.integers(_channel_shape(rank)))
    d.result(0, d.op("Mul", d.gradient(), along))
    bias = d.reduce("ReduceSum", d.gradient(), others)
    d.result(2, bias)
    total = d.reduce("ReduceSum", d.op("Mul", d.gradient(), x), others)
    scale = d.op("Div", d.op("Sub", total, d.op("Mul", bias, mean)), deviation)
    d.result(1, scale)
    d.result(3, d.op("Neg", d.op("Mul", bias, factor)))
    half = d.op("Mul", d.op("Mul", s, scale), d.scalar(-0.5))
    d.result(4, d.op("Div", half, variance))


def _instance_normalization(form: Form, d: Definition) -> None:
    """Y = s (x - mean) / sd + b over the spatial axes of each sample and channel."""
    rank = form.rank(0) or 0
    spatial = list(range(2, rank))
    shape = d.integers(_channel_shape(rank))
    scale = d.op("Reshape", d.input(1), shape)
    _normalise(form, d, scale, spatial)
    _scale_and_bias(d, _normalised(form, d, spatial)[0], [0, *spatial])


def _layer_normalization(form: Form, d: Definition) -> None:
    """Y = s (x - mean) / sd + b over the axes from ``axis`` on."""
    rank = form.rank(0) or 0
    first = form.integer("axis", -1) % rank
    inner = list(range(first, rank))
    _normalise(form, d, d.input(1), inner)
    _scale_and_bias(d, _normalised(form, d, inner)[0], list(range(first)))


def _normalise(form: Form, d: Definition, scale: str, axes: list[int]) -> None:
    """With t = G s and h = (x - mean) / sd: dx = (t - mean(t) - h mean(t h)) / sd."""
    normal, deviation = _normalised(form, d, axes)
    t = d.op("Mul", d.gradient(), scale)
    centred = d.op("Sub", t, d.reduce("ReduceMean", t, axes, keepdims=1))
    projection = d.reduce("ReduceMean", d.op("Mul", t, normal), axes, keepdims=1)
    rest = d.op("Sub", centred, d.op("Mul", normal, projection))
    d.result(0, d.op("Div", rest, deviation))


def _normalised(form: Form, d: Definition, axes: list[int]) -> tuple[str, str]:
    """The normalised input h and the standard deviation, computed again."""
    x = d.input(0)
    centred = d.op("Sub", x, d.reduce("ReduceMean", x, axes, keepdims=1))
    variance = d.reduce("ReduceMean", d.op("Mul", centred, centred), axes, keepdims=1)
    deviation = d.op("Sqrt", d.op("Add", variance, d.scalar(form.real("epsilon", EPSILON))))
    return d.op("Div", centred, deviation), deviation


def _scale_and_bias(d: Definition, normal: str, outer: list[int]) -> None:
    """Ds = sum G h and db = sum G over the axes that share one scale."""
    product = d.op("Mul", d.gradient(), normal)
    for index, spread in ((1, product), (2, d.gradient())):
        if index in d.positions:
            summed = d.reduce("ReduceSum", spread, outer) if outer else spread
            shape = d.op("Shape", d.input(index))
            d.result(index, d.op("Reshape", summed, shape))


def _channel_shape(rank: int) -> list[int]:
    """The shape that lines a vector up with axis 1."""
    return [1, -1] + [1] * (rank - 2)


def _refuse_normalization(form: Form) -> str | None:
    if form.rank(0) is None:
        return "the rank of its input is not known"
    if form.integer("training_mode", 0):
        return "it is in training mode"
    if any(value.uses() or value.is_graph_output() for value in form.node.outputs[1:]):
        return "its statistics are outputs too"
    return None


def _refuse_layer_normalization(form: Form) -> str | None:
    if reason := _refuse_normalization(form):
        return reason
    rank = form.rank(0) or 0
    if form.rank(1) != rank - form.integer("axis", -1) % rank:
        return "its scale is broadcast"
    return None


def normalisation_rules() -> dict[str, Rule]:
    """The rules of this module by operator."""
    return {
        "BatchNormalization": Rule(_batch_normalization, _refuse_normalization),
        "InstanceNormalization": Rule(_instance_normalization, _refuse_normalization),
        "LayerNormalization": Rule(_layer_normalization, _refuse_layer_normalization),
    }
