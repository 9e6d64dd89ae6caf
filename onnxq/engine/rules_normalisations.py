"""Gradients of normalisation layers at inference; G = dL/dy.

All but BatchNormalization share one equation: with h = (x - mean) / sd over some axes and
t = G s,

    dx = (t - mean(t) - h mean(t h)) / sd;  ds = sum G h;  db = sum G.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxq.engine.builder import Builder
from onnxq.engine.form import Form, Gradients, Rule, unknown_rank
from onnxq.engine.kernels import MICROSOFT
from onnxq.engine.sums import same_dimensions, unbroadcast

EPSILON = 1e-5


def _batch_normalization(form: Form, b: Builder) -> Gradients:
    """Y = s (x - mean) / sd + b with sd = sqrt(var + eps), all per channel.

    dx = G s / sd;  db = sum G;  ds = sum G (x - mean) / sd;
    dmean = -db s / sd;  dvar = -s ds / (2 (var + eps)).
    """
    x, s, mean, g, rank = b.input(0), b.input(1), b.input(3), b.gradient(), form.rank() or 0
    others = [axis for axis in range(rank) if axis != 1]
    variance = b.op("Add", b.input(4), form.number("epsilon", EPSILON))
    deviation = b.op("Sqrt", variance)
    factor = b.op("Div", s, deviation)
    found = {0: b.op("Mul", g, b.op("Reshape", factor, _channel_shape(rank)))}
    if form.wanted <= {0}:
        return found
    bias = b.reduce("ReduceSum", g, others)
    total = b.reduce("ReduceSum", b.op("Mul", g, x), others)
    scale = b.op("Div", b.op("Sub", total, b.op("Mul", bias, mean)), deviation)
    half = b.op("Mul", b.op("Mul", s, scale), -0.5)
    shift = b.op("Neg", b.op("Mul", bias, factor))
    return found | {1: scale, 2: bias, 3: shift, 4: b.op("Div", half, variance)}


def _instance_normalization(form: Form, b: Builder) -> Gradients:
    """Over the spatial axes of each sample and channel."""
    rank = form.rank() or 0
    scale = b.op("Reshape", b.input(1), _channel_shape(rank))
    dx, normal = _normalise(form, b, scale, b.input(), b.gradient(), range(2, rank))
    return {0: dx, **_scale_and_bias(form, b, normal, [0, *range(2, rank)])}


def _layer_normalization(form: Form, b: Builder) -> Gradients:
    """Over the axes from ``axis`` on."""
    rank = form.rank() or 0
    inner = range(form.integer("axis", -1) % rank, rank)
    if b.training_kernels and _has_one_scale_each(form, inner):
        return _by_kernel(form, b)
    dx, normal = _normalise(form, b, b.input(1), b.input(), b.gradient(), inner)
    found = {0: dx}
    for index, spread in ((1, b.op("Mul", b.gradient(), normal)), (2, b.gradient())):
        if index in form.wanted:
            found[index] = unbroadcast(b, spread, b.input(index), b.output())
    return found


def _has_one_scale_each(form: Form, inner: range) -> bool:
    """Whether the scale isn't broadcast, and the bias neither."""
    x, *others = (value.shape for value in form.node.inputs if value is not None)
    return x is not None and all(
        each is not None and same_dimensions(each.dims, x.dims[inner.start :]) for each in others
    )


def _by_kernel(form: Form, b: Builder) -> Gradients:
    """By LayerNormalizationGrad, from the mean and 1 / sd of the forward pass."""
    inputs = b.gradient(), b.input(0), b.input(1), b.optional_output(1), b.optional_output(2)
    attributes = {"axis": form.integer("axis", -1)}
    present = [True] * 3
    found = b.ops(
        present, "LayerNormalizationGrad", *inputs, domain=MICROSOFT, attributes=attributes
    )
    return dict(enumerate(found))


def _group_normalization(form: Form, b: Builder) -> Gradients:
    """Over a group of channels and the spatial axes; one scale a group before opset 21."""
    rank, groups = form.rank() or 0, form.integer("num_groups", 1)
    x, like = b.input(), _channel_shape(rank)
    per_group = form.opset < 21
    parts = [0, groups, -1]
    if per_group:
        scale = b.op("Reshape", b.input(1), [1, -1, 1])
        t = b.op("Reshape", b.gradient(), parts)
    else:
        scale = b.scalar(1.0)
        scaled = b.op("Mul", b.gradient(), b.op("Reshape", b.input(1), like))
        t = b.op("Reshape", scaled, parts)
    dx, normal = _normalise(form, b, scale, b.op("Reshape", x, parts), t, [2])
    found = {0: b.reshape_like(dx, x)}
    if per_group:
        return found | _scale_and_bias(form, b, normal, [0, 2], t)
    return found | _scale_and_bias(form, b, b.reshape_like(normal, x), [0, *range(2, rank)])


def _normalise(
    form: Form, b: Builder, scale: ir.Value, x: ir.Value, g: ir.Value, axes: Sequence[int]
) -> tuple[ir.Value, ir.Value]:
    """Dx by the equation at the head of this module, and h."""
    centred = b.op("Sub", x, b.reduce("ReduceMean", x, axes, keepdims=1))
    variance = b.reduce("ReduceMean", b.op("Mul", centred, centred), axes, keepdims=1)
    deviation = b.op("Sqrt", b.op("Add", variance, form.number("epsilon", EPSILON)))
    normal, t = b.op("Div", centred, deviation), b.op("Mul", g, scale)
    left = b.op("Sub", t, b.reduce("ReduceMean", t, axes, keepdims=1))
    projection = b.reduce("ReduceMean", b.op("Mul", t, normal), axes, keepdims=1)
    rest = b.op("Sub", left, b.op("Mul", normal, projection))
    return b.op("Div", rest, deviation), normal


def _scale_and_bias(
    form: Form, b: Builder, normal: ir.Value, axes: Sequence[int], g: ir.Value | None = None
) -> Gradients:
    """Ds = sum G h and db = sum G over the axes that share one scale."""
    g = b.gradient() if g is None else g
    spread = {1: b.op("Mul", g, normal), 2: g}
    return {i: b.reduce("ReduceSum", spread[i], axes) for i in form.wanted & {1, 2}}


def _channel_shape(rank: int) -> list[int]:
    """The shape that lines a vector up with axis 1."""
    return [1, -1] + [1] * (rank - 2)


def _refuse(form: Form) -> str | None:
    if form.integer("training_mode", 0):
        return "it is in training mode"
    if any(value.uses() or value.is_graph_output() for value in form.node.outputs[1:]):
        return "its statistics are outputs too"
    return unknown_rank(form)


NORMALISATIONS = {
    "BatchNormalization": Rule(_batch_normalization, _refuse),
    "GroupNormalization": Rule(_group_normalization, _refuse),
    "InstanceNormalization": Rule(_instance_normalization, _refuse),
    "LayerNormalization": Rule(_layer_normalization, _refuse),
}
