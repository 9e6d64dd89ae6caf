"""Facts about nodes, values, constants and sub-graphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

DEFAULT_DOMAINS = frozenset({"", "ai.onnx"})
"""Two names of ONNX's own operators."""


def tensor_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or a Constant node; None for a computed value or an input."""
    if value is None or value.is_graph_input():
        return None
    return ir.convenience.get_const_tensor(value)


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer or a Constant node; None for a computed value or an input."""
    tensor = tensor_of(value)
    return None if tensor is None else tensor.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Whether the value is the same in every run."""
    return tensor_of(value) is not None


def values_by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    """The values of the main graph, not those of its sub-graphs."""
    return ir.convenience.create_value_mapping(graph, include_subgraphs=False)


def producer(value: ir.Value | None) -> ir.Node | None:
    """The node that computes the value; None where there is no such node or no value."""
    return None if value is None else value.producer()


def computed_from_constants(value: ir.Value | None) -> bool:
    """Whether the value is computed from constants alone, by ONNX's own operators."""
    if producer(value) is None:
        return False
    waiting, seen = [value], {value}
    while waiting:
        each = waiting.pop()
        if is_constant(each):
            continue
        node = producer(each)
        if node is None or not node.inputs or node.domain not in DEFAULT_DOMAINS:
            return False
        fresh = {read for read in node.inputs if read is not None} - seen
        seen |= fresh
        waiting += fresh
    return True


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """The node's input at a position; None where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def rank(value: ir.Value | None) -> int | None:
    """The number of dimensions, if known."""
    return None if value is None or value.shape is None else len(value.shape)


def static_dim(value: ir.Value | None, axis: int) -> int | None:
    """The size along an axis, if it is a known number."""
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else None


def only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads the value once; None if others do or it is a graph output.

    Also None where a node inside a sub-graph reads it, which may run several times or never.
    """
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.graph is not value.graph:
        return None
    return uses[0].node


def is_used(value: ir.Value) -> bool:
    """Whether a node reads the value or it is a graph output."""
    return bool(value.uses()) or value.is_graph_output()


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether the node is one of these operators of ONNX's own domain."""
    return node is not None and node.op_type in op_types and node.domain in DEFAULT_DOMAINS


def axes_of(node: ir.Node, input_rank: int) -> tuple[int, ...] | None:
    """The non-negative axes of a Reduce*, Squeeze or Unsqueeze node, from attribute or input.

    None where they are not constant or not given.
    """
    found: Sequence[int] | None = node.attributes.get_ints("axes")
    if found is None:
        array = constant(input_at(node, 1))
        found = None if array is None else [int(axis) for axis in array.reshape(-1)]
    if found is None:
        return None
    return tuple(sorted(axis % input_rank for axis in found))


def scalar(value: ir.Value | None, absent: float | None = None) -> float | None:
    """The number in a parameter of shape () or (1,): ONNX Runtime accepts both.

    Args:
        value: a parameter of an operator, such as a bound of a Clip.
        absent: returned for a parameter that isn't there.

    Returns:
        The number; None where it is computed, or there are several.
    """
    if value is None:
        return absent
    tensor = tensor_of(value)
    if tensor is None or tensor.size != 1 or len(tensor.shape) > 1:
        return None
    return float(tensor.numpy().reshape(()))


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs among a node's attributes; not those inside them."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def has_subgraph(node: ir.Node) -> bool:
    """Whether the node has sub-graphs."""
    return next(subgraphs(node), None) is not None


def nested_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """All nodes in a node's sub-graphs, at any depth."""
    for graph in subgraphs(node):
        yield from graph.all_nodes()


def nested_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The sub-graphs of a node, at any depth."""
    for graph in subgraphs(node):
        yield graph
        yield from graph.subgraphs()


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads: its inputs, and outer values that its sub-graphs read."""
    yield from (value for value in node.inputs if value is not None)
    inside = dict.fromkeys(nested_graphs(node))
    for graph in inside:
        taken = [value for inner in graph for value in inner.inputs]
        for value in (*taken, *graph.outputs):
            if value is not None and value.graph not in inside:
                yield value
