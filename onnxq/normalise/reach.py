"""Which values the numbers that are fed reach."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxq.normalise.facts import is_op


def moved_by_inputs(graph: ir.Graph) -> set[ir.Value]:
    """The values that depend on what the inputs hold, the inputs themselves among them.

    Those that depend on the inputs' sizes alone do not.

    Args:
        graph: the main graph, its nodes in order.
    """
    moved = {value for value in graph.inputs if value.name not in graph.initializers}
    for node in graph:
        if not is_op(node, "Shape", "Size") and any(value in moved for value in read_by(node)):
            moved.update(node.outputs)
    return moved


def read_by(node: ir.Node) -> Iterator[ir.Value]:
    """What a node and its sub-graphs read, wherever it comes from."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        for graph in _graphs(attribute):
            yield from graph.outputs
            for inner in graph:
                yield from read_by(inner)


def _graphs(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []
