"""The loss graph: relative squared error of the student's logits, as nodes of the student."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

LOSS = "onnxq.loss"
"""Name of the loss output: a float32 scalar, the sum over the samples of a batch."""


def target_name(logits: str) -> str:
    """The input that takes the teacher's values of a tensor."""
    return f"{logits}.target"


def attach_loss(student: ir.Model, weights: Mapping[str, float]) -> ir.Model:
    """A copy of the student with the loss as its only output.

    loss = sum_k weight_k * sum (student_k - target_k)^2. A sum, not a mean, so that the
    losses of the shards of a batch add up; `relative_rmse` makes FAT's RMSE of it.

    Args:
        student: the student; it isn't changed.
        weights: the factor of each compared tensor, by name.
    """
    model = student.clone(deep_copy=False)
    graph = model.graph
    values = {v.name: v for node in graph for v in node.outputs}
    body = tape.Tape()
    terms: list[ir.Value] = []
    # Initializers, not Constant nodes, which a cut of the graph would take for tensors.
    two = _constant(graph, f"{LOSS}.two", 2.0)
    for name, weight in weights.items():
        value = values[name]
        target = ir.val(target_name(name), ir.DataType.FLOAT, _free_shape(value))
        graph.inputs.append(target)
        squared = body.op("Pow", [body.op("Sub", [value, target]), two])
        total = body.op("ReduceSum", [squared], {"keepdims": 0})
        factor = _constant(graph, f"{LOSS}.weight.{name}", weight)
        terms.append(body.op("Mul", [total, factor]))
    total = terms[0]
    for term in terms[1:]:
        total = body.op("Add", [total, term])
    total.name, total.type, total.shape = LOSS, ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    graph.extend(body.nodes)
    graph.outputs.clear()
    graph.outputs.append(total)
    for i, node in enumerate(body.nodes):
        node.name = f"{LOSS}.{i}"
        for output in node.outputs:
            output.name = output.name or f"{LOSS}.{i}.value"
    return model


def _constant(graph: ir.Graph, name: str, number: float) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(np.float32(number), name=name))
    graph.register_initializer(value)
    return value


def _free_shape(value: ir.Value) -> ir.Shape | None:
    """A shape of the same rank with free dimensions: a size inferred may be one of several."""
    return None if value.shape is None else ir.Shape([None] * len(value.shape))


def relative_rmse(loss: float, samples: int) -> float:
    """FAT's loss, the root of the mean over samples: RMSE relative to the teacher's RMS."""
    return float(np.sqrt(loss / max(samples, 1)))
