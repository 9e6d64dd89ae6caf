"""Gradients of losses that are operators; G = dL/dy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.engine.builder import Builder
from onnxq.engine.form import Form, Gradients, Rule


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
