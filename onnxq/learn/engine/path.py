"""Which values of a graph carry a gradient: those between a trainable input and the loss."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from onnxq.graph.nested import reads

FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
)


def infer_types(model: ir.Model) -> None:
    """Fill in types and shapes, in place."""
    common_passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)


def carrying_values(
    graph: ir.Graph, trainable: Sequence[str], losses: Sequence[str]
) -> set[ir.Value]:
    """The float values that depend on a trainable input and that a loss depends on.

    Integer and boolean values end a path: shapes, indices and conditions have no gradient.
    A value of unknown type counts as float.

    Args:
        graph: main graph, sorted topologically; types should have been inferred.
        trainable: names of graph inputs.
        losses: names of graph outputs.
    """
    names = set(trainable)
    dependent = {value for value in graph.inputs if value.name in names}
    for node in graph:
        if any(value in dependent for value in reads(node)):
            dependent.update(value for value in node.outputs if is_float(value))
    return dependent & _ancestors(graph, set(losses))


def carrying_nodes(graph: ir.Graph, carrying: set[ir.Value]) -> list[ir.Node]:
    """The nodes that a gradient passes through, in the graph's order."""
    return [
        node
        for node in graph
        if carrying.intersection(node.outputs) and carrying.intersection(reads(node))
    ]


def is_float(value: ir.Value) -> bool:
    """Whether a value may carry a gradient."""
    return value.dtype is None or value.dtype in FLOATS


def _ancestors(graph: ir.Graph, losses: set[str]) -> set[ir.Value]:
    found = {value for value in graph.outputs if value.name in losses}
    for node in reversed(graph):
        if found.intersection(node.outputs):
            found.update(reads(node))
    return found
