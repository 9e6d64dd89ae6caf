"""The loss graph: relative squared error of the student's logits, as nodes of the student."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from onnxq.graph.editor import add_initializer
from onnxq.graph.facts import values_by_name

LOSS = "onnxq.loss"
"""Name of the loss output: a float32 scalar, the sum over the samples of a batch."""
AGREES = "onnxq.agrees"
"""Name of a classifier's second output: on how many samples the decision is the teacher's."""


def target_name(logits: str) -> str:
    """The name of the graph input that takes the teacher's values of a tensor."""
    return f"{logits}.target"


def attach_loss(
    student: ir.Model, weights: Mapping[str, float], decision: str | None = None
) -> ir.Model:
    """A copy of the student with the loss as its output.

    loss = sum_k weight_k * sum (student_k - target_k)^2. It is a sum, not a mean, so that the
    losses of a batch's shards add up.

    Args:
        student: the student; it isn't changed.
        weights: the factor of each compared tensor, by name.
        decision: the tensor whose largest entry is the decision; where given, the number of equal
            decisions is a second output.
    """
    model = student.clone(deep_copy=False)
    graph = model.graph
    values = values_by_name(graph)
    body = tape.Tape()
    terms: list[ir.Value] = []
    decides: tuple[ir.Value, ir.Value] | None = None
    # Initializers, not Constant nodes, which a cut of the graph would take for tensors.
    two = add_initializer(graph, f"{LOSS}.two", np.array(2.0, np.float32))
    for name, weight in weights.items():
        value = values[name]
        target = ir.val(target_name(name), ir.DataType.FLOAT, free_shape(value))
        graph.inputs.append(target)
        squared = body.op("Pow", [body.op("Sub", [value, target]), two])
        total = body.op("ReduceSum", [squared], {"keepdims": 0})
        factor = add_initializer(graph, f"{LOSS}.weight.{name}", np.array(weight, np.float32))
        terms.append(body.op("Mul", [total, factor]))
        if name == decision:
            decides = value, target
    total = terms[0]
    for term in terms[1:]:
        total = body.op("Add", [total, term])
    return finished(model, body, total, decides)


def finished(
    model: ir.Model,
    body: tape.Tape,
    loss: ir.Value,
    decides: tuple[ir.Value, ir.Value] | None = None,
) -> ir.Model:
    """The model with the nodes of the tape added and the loss as its output; changed in place.

    Args:
        model: the copy of a student that the nodes of the tape read.
        body: the nodes.
        loss: their result, a scalar.
        decides: a classifier's logits and their target, (samples, classes); where given, the number
            of equal decisions is a second output.
    """
    outputs = {LOSS: loss}
    if decides is not None:
        outputs[AGREES] = _agreement(body, *decides)
    for name, value in outputs.items():
        value.name, value.type, value.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    for i, node in enumerate(body.nodes):
        node.name = f"{LOSS}.{i}"
        for output in node.outputs:
            output.name = output.name or f"{LOSS}.{i}.value"
    model.graph.extend(body.nodes)
    model.graph.outputs[:] = list(outputs.values())
    return model


def _agreement(body: tape.Tape, logits: ir.Value, target: ir.Value) -> ir.Value:
    decisions = [body.op("ArgMax", [value], {"axis": 1}) for value in (logits, target)]
    equal = body.op("Cast", [body.op("Equal", decisions)], {"to": ir.DataType.FLOAT})
    return body.op("ReduceSum", [equal], {"keepdims": 0})


def free_shape(value: ir.Value) -> ir.Shape | None:
    """A shape of the same rank with free dimensions: an inferred size may be one of several."""
    return None if value.shape is None else ir.Shape([None] * len(value.shape))
