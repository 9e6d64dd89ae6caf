"""Gradients of reductions, running sums and losses; G = dL/dy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxq.engine.builder import Builder
from onnxq.engine.form import Form, Gradients, Rule, unknown_rank
from onnxq.engine.kernels import MICROSOFT

Slope = Callable[[Builder, ir.Value, ir.Value], ir.Value]
"""The slope of y in x, from the builder, x, and y with the dimensions of x."""


def _spread(form: Form, b: Builder, value: ir.Value) -> ir.Value:
    """A value in the output's shape with the dimensions of x, those reduced being 1."""
    if form.node.op_type.startswith("Global") or form.integer("keepdims", 1):
        return value
    axes = _axes(form)
    return b.op("Unsqueeze", value, axes) if axes else value


def _axes(form: Form) -> list[int]:
    """The constant axes that a reduction removes."""
    rank, constant = form.rank() or 0, form.constant(1)
    if form.node.op_type.startswith("Global"):
        return list(range(2, rank))
    given = form.integers("axes", [] if constant is None else [int(each) for each in constant])
    if given or form.integer("noop_with_empty_axes", 0):
        return given
    return list(range(rank))


def _refuse(form: Form) -> str | None:
    return "its axes are not constant" if form.has(1) and form.constant(1) is None else None


def _refuse_extreme(form: Form) -> str | None:
    return _refuse(form) or unknown_rank(form)


def _sum(form: Form, b: Builder) -> Gradients:
    return {0: b.op("Expand", _spread(form, b, b.gradient()), b.op("Shape", b.input()))}


def _mean(form: Form, b: Builder) -> Gradients:
    """Dx = G / count."""
    counts = [b.op("Size", value) for value in (b.input(), b.output())]
    share = b.op("Div", b.gradient(), b.cast(b.op("Div", *counts)))
    return {0: b.op("Expand", _spread(form, b, share), b.op("Shape", b.input()))}


def _by_slope(slope: Slope, form: Form, b: Builder) -> Gradients:
    y, g = (_spread(form, b, value) for value in (b.output(), b.gradient()))
    return {0: b.op("Mul", slope(b, b.input(), y), g)}


def _extreme(form: Form, b: Builder) -> Gradients:
    """Dx = G / count where x is the extreme, shared by the elements that tie."""
    y, g = (_spread(form, b, value) for value in (b.output(), b.gradient()))
    mask = b.cast(b.op("Equal", b.input(), y))
    share = b.op("Div", g, b.reduce("ReduceSum", mask, _axes(form), keepdims=1))
    return {0: b.op("Mul", mask, share)}


def _cum_sum(form: Form, b: Builder) -> Gradients:
    """The running sum of G in the other direction."""
    reverse, exclusive = 1 - form.integer("reverse", 0), form.integer("exclusive", 0)
    found = b.op("CumSum", b.gradient(), b.input(1), reverse=reverse, exclusive=exclusive)
    return {0: found}


def _softmax(form: Form, b: Builder) -> Gradients:
    """Dx = y (G - sum of G y); over another axis than the last, the kernel is slower."""
    axis, rank = form.integer("axis", -1), form.rank()
    if b.training_kernels and rank is not None and axis % rank == rank - 1:
        attributes = {"axis": axis}
        inputs = (b.gradient(), b.output())
        return {0: b.op("SoftmaxGrad_13", *inputs, domain=MICROSOFT, attributes=attributes)}
    product = b.op("Mul", b.gradient(), b.output())
    total = b.reduce("ReduceSum", product, [axis], keepdims=1)
    return {0: b.op("Sub", product, b.op("Mul", b.output(), total))}


def _log_softmax(form: Form, b: Builder) -> Gradients:
    """Dx = G - e^y sum of G."""
    total = b.reduce("ReduceSum", b.gradient(), [form.integer("axis", -1)], keepdims=1)
    return {0: b.op("Sub", b.gradient(), b.op("Mul", b.op("Exp", b.output()), total))}


SLOPES: dict[str, Slope] = {
    "ReduceL1": lambda b, x, y: b.op("Sign", x),
    "ReduceL2": lambda b, x, y: b.op("Div", x, y),
    "ReduceLogSum": lambda b, x, y: b.op("Expand", b.op("Exp", b.op("Neg", y)), b.op("Shape", x)),
    "ReduceLogSumExp": lambda b, x, y: b.op("Exp", b.op("Sub", x, y)),
    "ReduceSumSquare": lambda b, x, y: b.op("Mul", x, 2.0),
}

REDUCTIONS = {
    **{op_type: Rule(partial(_by_slope, each), _refuse) for op_type, each in SLOPES.items()},
    **dict.fromkeys(("GlobalMaxPool", "ReduceMax", "ReduceMin"), Rule(_extreme, _refuse_extreme)),
    **dict.fromkeys(("GlobalAveragePool", "ReduceMean"), Rule(_mean, _refuse)),
    "CumSum": Rule(_cum_sum),
    "LogSoftmax": Rule(_log_softmax),
    "ReduceSum": Rule(_sum, _refuse),
    "Softmax": Rule(_softmax),
}


def _cross_entropy(form: Form, b: Builder) -> Gradients:
    """Dx = (softmax(x) - one-hot label) G w, w the share of each sample in the loss."""
    labels, counts = _labels(form, b)
    share = b.op("Unsqueeze", b.op("Mul", b.gradient(), _shares(form, b, labels, counts)), [1])
    probabilities = b.op("Softmax", b.input(), axis=1)
    classes = b.op("Gather", b.op("Shape", b.input()), [1])
    values = b.op("Concat", b.op("Expand", 0.0, [1]), b.op("Expand", 1.0, [1]), axis=0)
    hot = b.op("OneHot", labels, classes, values, axis=1)
    return {0: b.op("Mul", b.op("Sub", probabilities, hot), share)}


def _labels(form: Form, b: Builder) -> tuple[ir.Value, ir.Value]:
    """Labels, 0 for those that are ignored; 1.0 for each that counts."""
    labels = b.op("Cast", b.input(1), to=int(ir.DataType.INT64))
    ignored = b.array(np.int64(form.integer("ignore_index", -(2**40))))
    counts = b.cast(b.op("Not", b.op("Equal", labels, ignored)))
    kept = b.op("Mul", labels, b.op("Cast", counts, to=int(ir.DataType.INT64)))
    return kept, counts


def _shares(form: Form, b: Builder, labels: ir.Value, weights: ir.Value) -> ir.Value:
    """The weight of each sample, divided by the sum of all for a mean."""
    if form.has(2):
        weights = b.op("Mul", weights, b.op("Gather", b.input(2), labels))
    if form.text("reduction", "mean") != "mean":
        return weights
    return b.op("Div", weights, b.total(weights))


def _refuse_weights(form: Form) -> str | None:
    if 2 in form.wanted:
        return "its weights depend on a trained value"
    if any(value.uses() or value.is_graph_output() for value in form.node.outputs[1:]):
        return "its log-probabilities are used too"
    return None


LOSSES = {"SoftmaxCrossEntropyLoss": Rule(_cross_entropy, _refuse_weights)}
