"""The integer part of a graph: layers, the nodes between them, and the tensors to quantize."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.graph.facts import constant, nested_nodes
from onnxq.graph.operators import (
    COMPUTES,
    FLOAT_RESULT_OPERATORS,
    TABLE,
    activation_bounds,
    is_data_movement,
)
from onnxq.plan.layers import Layer, first_and_last

FALLBACK_REASON = "8 bits are too few for the tensors around it, as samples showed"


@dataclass(frozen=True)
class QuantizationPoint:
    """A tensor to quantize: its value, the activation that its range includes, and its writer."""

    value: ir.Value
    folded: ir.Node | None
    integer: bool


class Regions:
    """The integer part of a graph.

    Args:
        graph: the teacher's graph, in topological order.
        layers: the layers that may run in integers.
        infinite: names of tensors without a finite range, which stay float.
        fallback: names of tensors that need more than 8 bits, which stay float.

    Attributes:
        integer_layers: the nodes of the layers that run on integer kernels.
        weight_only: the other layers' nodes, with the reason.
        integer_nodes: nodes without weights that run on integer kernels.
        points: the tensors to quantize, in graph order.
        data_movement: nodes that move integers: those that integer nodes write to or read.
    """

    def __init__(
        self,
        graph: ir.Graph,
        layers: list[Layer],
        infinite: frozenset[str] = frozenset(),
        fallback: frozenset[str] = frozenset(),
    ) -> None:
        self._graph = graph
        self._infinite = infinite
        self._fallback = fallback
        self._outputs = set(graph.outputs)
        self._data = {layer.node: layer.data for layer in layers}
        self._holders = {inner: node for node in graph for inner in nested_nodes(node)}
        self._leading = self._nodes_that_lead_to_layers()
        self.weight_only = self._refused_layers(layers)
        self.integer_layers = {n for n in self._data if n not in self.weight_only}
        self.integer_nodes = self._find_integer_nodes()
        self.points = self._find_points()
        self.data_movement = self._find_data_movement()

    def _nodes_that_lead_to_layers(self) -> set[ir.Node]:
        leading: set[ir.Node] = set()
        for node in reversed(list(self._graph)):
            if node in self._data or any(
                c in leading for out in node.outputs for c in self._readers(out)
            ):
                leading.add(node)
        return leading

    def _readers(self, value: ir.Value) -> list[ir.Node]:
        """The nodes of the main graph that read a value, directly or in a sub-graph."""
        return list(dict.fromkeys(self._holders.get(node, node) for node in value.consumers()))

    def _leads(self, value: ir.Value) -> bool:
        return any(node in self._leading for node in self._readers(value))

    def _refused_layers(self, layers: list[Layer]) -> dict[ir.Node, str]:
        reasons: dict[ir.Node, str] = {}
        for layer in layers:
            node, rank = layer.node, len(constant_shape(layer.weight))
            if node.op_type == TABLE:
                reasons[node] = "rows are looked up as integers and then converted to float"
            elif node.op_type == "ConvTranspose":
                reasons[node] = "ConvTranspose has no integer kernel"
            elif node.op_type == "MatMul" and rank != 2:
                reasons[node] = f"its weights have {rank} dimensions, an integer MatMul takes 2"
            elif node.op_type == "Conv" and not self._leads(node.outputs[0]):
                reasons[node] = "no other layer reads its result, which therefore stays float"
            elif self._touches_infinite(node):
                reasons[node] = "the tensors around it hold NaN or infinite values"
            elif self._touches_fallback(node):
                reasons[node] = FALLBACK_REASON
        return reasons

    def _touches_infinite(self, node: ir.Node) -> bool:
        around = [root(v) for v in node.inputs if v is not None] + list(node.outputs)
        around += [out for c in self._readers(node.outputs[0]) for out in c.outputs]
        return any(value.name in self._infinite for value in around)

    def _touches_fallback(self, node: ir.Node) -> bool:
        """Whether a tensor of the node, or the activation in its range, needs more than 8 bits."""
        around = [root(v) for v in node.inputs if v is not None] + list(node.outputs)
        for reader in self._readers(node.outputs[0]):
            if activation_bounds(reader) is not None:
                around += list(reader.outputs)
        return any(value.name in self._fallback for value in around)

    def _find_integer_nodes(self) -> set[ir.Node]:
        nodes: set[ir.Node] = set()
        for node in self._graph:
            if self._may_compute(node) and all(
                self._available(v, nodes) for v in node.inputs if v is not None
            ):
                nodes.add(node)
        for node in reversed(list(self._graph)):
            if node in nodes and not self._read_in_integers(node.outputs[0], nodes):
                nodes.discard(node)
        return nodes

    def _may_compute(self, node: ir.Node) -> bool:
        if node.domain or node.op_type not in COMPUTES or not self._leads(node.outputs[0]):
            return False
        if self._touches_infinite(node) or self._touches_fallback(node):
            return False
        return all(
            v is not None and constant(v) is None and v.dtype == ir.DataType.FLOAT
            for v in node.inputs
        )

    def _available(self, value: ir.Value, nodes: set[ir.Node]) -> bool:
        """Whether the value is an integer tensor: of an integer node, or quantized for a layer."""
        value = root(value)
        node = value.producer()
        if node is None or node in self.integer_layers or node in nodes:
            return True
        if activation_bounds(node) is not None and node.inputs[0] is not None:
            before = node.inputs[0].producer()
            if before in self.integer_layers or before in nodes:
                return True
        return any(
            self._data.get(c) is value and c in self.integer_layers for c in self._readers(value)
        )

    def _read_in_integers(self, value: ir.Value, nodes: set[ir.Node]) -> bool:
        for node in self._readers(value):
            if node in nodes or (node in self.integer_layers and self._data[node] is value):
                return True
            if (is_data_movement(node) or activation_bounds(node) is not None) and any(
                self._read_in_integers(out, nodes) for out in node.outputs
            ):
                return True
        return False

    def _find_points(self) -> list[QuantizationPoint]:
        wanted: dict[ir.Value, None] = {}
        for node in self._graph:
            if node in self.integer_layers:
                wanted.setdefault(root(self._data[node]))
                if node.op_type not in FLOAT_RESULT_OPERATORS:
                    wanted.setdefault(self._activated(node.outputs[0]))
            elif node in self.integer_nodes:
                for value in node.inputs:
                    assert value is not None
                    wanted.setdefault(root(value))
                wanted.setdefault(self._activated(node.outputs[0]))
        return [self._point(value) for value in wanted]

    def _find_data_movement(self) -> set[ir.Node]:
        written = {point.value for point in self.points if point.integer}
        found: set[ir.Node] = set()
        for node in reversed(list(self._graph)):
            if is_data_movement(node) and (
                root(node.outputs[0]) in written or self._moved_to_integers(node, found)
            ):
                found.add(node)
        return found

    def _moved_to_integers(self, node: ir.Node, found: set[ir.Node]) -> bool:
        for value in node.outputs:
            for reader in self._readers(value):
                if reader in self.integer_nodes:
                    return True
                if self._data.get(reader) is value and reader in self.integer_layers:
                    return True
                if reader in found and reader.inputs[0] is value:
                    return True
        return False

    def _activated(self, value: ir.Value) -> ir.Value:
        """The value after the activation that the range of `value` can include."""
        consumers = self._readers(value)
        if len(consumers) == 1 and self._folds(consumers[0]):
            return consumers[0].outputs[0]
        return value

    def _folds(self, node: ir.Node) -> bool:
        value = node.inputs[0]
        if activation_bounds(node) is None or value is None:
            return False
        alone = len(value.uses()) == 1 and value not in self._outputs
        return alone and self._writes_integers(value.producer())

    def _writes_integers(self, node: ir.Node | None) -> bool:
        return node in self.integer_layers or node in self.integer_nodes

    def _point(self, value: ir.Value) -> QuantizationPoint:
        node = value.producer()
        if node is not None and self._folds(node):
            return QuantizationPoint(value, node, True)
        integer = self._writes_integers(node)
        if node is not None and node.op_type in FLOAT_RESULT_OPERATORS:
            integer = integer and value not in self._outputs
        return QuantizationPoint(value, None, integer)


def root(value: ir.Value) -> ir.Value:
    """The value before all data movement that holds the same elements."""
    node = value.producer()
    while node is not None and is_data_movement(node) and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def constant_shape(value: ir.Value) -> tuple[int, ...]:
    """The shape of a constant value."""
    array = constant(value)
    assert array is not None
    return array.shape


def layer_inputs(layers: Sequence[Layer]) -> frozenset[str]:
    """The names of the tensors that layers read, before data movement."""
    return frozenset(str(root(each.data).name) for each in layers if each.node.op_type != TABLE)


def wide_tensors(layers: Sequence[Layer]) -> frozenset[str]:
    """The names of the inputs of the first and last layers."""
    ends = first_and_last(layers)
    return layer_inputs([layer for layer in layers if layer.node in ends])
