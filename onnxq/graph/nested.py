"""The graphs inside a node (If, Loop, Scan), and what they read from outside."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs among a node's attributes; not those inside them."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def has_subgraph(node: ir.Node) -> bool:
    """Whether the node runs other graphs."""
    return next(subgraphs(node), None) is not None


def nested_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """All nodes inside a node, at any depth."""
    for graph in subgraphs(node):
        yield from graph.all_nodes()


def nested_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs inside a node, at any depth."""
    for graph in subgraphs(node):
        yield graph
        yield from graph.subgraphs()


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads: its inputs, and what its sub-graphs take from outside it."""
    yield from (value for value in node.inputs if value is not None)
    inside = dict.fromkeys(nested_graphs(node))
    for graph in inside:
        taken = [value for inner in graph for value in inner.inputs]
        for value in (*taken, *graph.outputs):
            if value is not None and value.graph not in inside:
                yield value
