"""Gradients of normalisation layers at inference.

Of reductions and of running sums; G = dL/dy.
"""

from __future__ import annotations

from onnxq.engine.definition import Definition, Form, Rule

EPSILON = 1e-5


def _batch_normalization(form: Form, d: Definition) -> None:
    """Y = s (x - mean) / sd + b with sd = sqrt(var + eps), all per channel.

    dx = G s / sd;  db = sum G;  ds = sum G (x - mean) / sd;
    dmean = -db s / sd;  dvar = -s ds / (2 (var + eps)).
    """
    x, s, mean = d.input(0), d.input(1), d.input(3)
    rank = form.rank(0) or 0
    others = [axis for axis in range(rank) if axis != 1]
    variance = d.op("Add", d.input(4), d.scalar(form.node.attributes.get_float("epsilon", EPSILON)))
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
    first = form.node.attributes.get_int("axis", -1) % rank
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
    epsilon = d.scalar(form.node.attributes.get_float("epsilon", EPSILON))
    deviation = d.op("Sqrt", d.op("Add", variance, epsilon))
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
    if form.node.attributes.get_int("training_mode", 0):
        return "it is in training mode"
    if any(value.uses() or value.is_graph_output() for value in form.node.outputs[1:]):
        return "its statistics are outputs too"
    return None


def _refuse_layer_normalization(form: Form) -> str | None:
    if reason := _refuse_normalization(form):
        return reason
    rank = form.rank(0) or 0
    if form.rank(1) != rank - form.node.attributes.get_int("axis", -1) % rank:
        return "its scale is broadcast"
    return None


def normalisation_rules() -> dict[str, Rule]:
    """The rules of this module by operator."""
    return {
        "BatchNormalization": Rule(_batch_normalization, _refuse_normalization),
        "InstanceNormalization": Rule(_instance_normalization, _refuse_normalization),
        "LayerNormalization": Rule(_layer_normalization, _refuse_layer_normalization),
    }


def _axes(form: Form) -> list[int] | None:
    """The axes that a Reduce operator removes; None where they aren't known."""
    given = list(form.node.attributes.get_ints("axes", []))
    if form.has(1):
        constant = form.constant(1)
        if constant is None:
            return None
        given = [int(axis) for axis in constant]
    if given or form.node.attributes.get_int("noop_with_empty_axes"):
        return given
    rank = form.rank(0)
    return None if rank is None else list(range(rank))


def _unknown_axes(form: Form) -> str | None:
    return "its axes are not constant" if _axes(form) is None else None


def _extreme(form: Form, d: Definition, op_type: str, axes: list[int]) -> None:
    """Dx = G / count where x is the extreme, shared by the elements that tie."""
    x = d.input(0)
    extreme = d.reduce(op_type, x, axes, keepdims=1)
    mask = d.op("Cast", d.op("Equal", x, extreme), to=1)
    share = d.op("Div", _keep_dimensions(d, extreme), d.reduce("ReduceSum", mask, axes, keepdims=1))
    d.result(0, d.op("Mul", mask, share))


def _reduce_extreme(form: Form, d: Definition) -> None:
    _extreme(form, d, form.node.op_type, _axes(form) or [])


def _global_max_pool(form: Form, d: Definition) -> None:
    _extreme(form, d, "ReduceMax", list(range(2, form.rank(0) or 2)))


def _reduce_l1(form: Form, d: Definition) -> None:
    """Dx = G sign(x)."""
    kept = d.reduce("ReduceSum", d.input(0), _axes(form) or [], keepdims=1)
    d.result(0, d.op("Mul", d.op("Sign", d.input(0)), _keep_dimensions(d, kept)))


def _reduce_sum_square(form: Form, d: Definition) -> None:
    """Dx = 2 G x."""
    kept = d.reduce("ReduceSum", d.input(0), _axes(form) or [], keepdims=1)
    double = d.op("Mul", d.input(0), d.scalar(2.0))
    d.result(0, d.op("Mul", double, _keep_dimensions(d, kept)))


def _cum_sum(form: Form, d: Definition) -> None:
    """The running sum of G in the other direction."""
    attributes = form.node.attributes
    reverse, exclusive = 1 - attributes.get_int("reverse", 0), attributes.get_int("exclusive", 0)
    d.result(0, d.op("CumSum", d.gradient(), d.input(1), reverse=reverse, exclusive=exclusive))


def _keep_dimensions(d: Definition, like: str) -> str:
    """G in the shape that keepdims=1 gives."""
    return d.op("Reshape", d.gradient(), d.op("Shape", like))


def reduction_rules() -> dict[str, Rule]:
    """The rules of this module by operator."""
    return {
        "CumSum": Rule(_cum_sum),
        "GlobalMaxPool": Rule(_global_max_pool, _unknown_rank),
        "ReduceL1": Rule(_reduce_l1, _unknown_axes),
        "ReduceMax": Rule(_reduce_extreme, _unknown_axes),
        "ReduceMin": Rule(_reduce_extreme, _unknown_axes),
        "ReduceSumSquare": Rule(_reduce_sum_square, _unknown_axes),
    }


def _unknown_rank(form: Form) -> str | None:
    return "the rank of its input is not known" if form.rank(0) is None else None
