"""Write a codebook: packed indices, nodes that unpack them, and a Gather from the table.

    bytes -> BitShift ... -> Reshape -> Cast           a field of bits
    bytes -> Cast -> Div -> Mod -> Mul -> Reshape      a ternary digit
    sum of the fields -> Gather(centroids)

with a Slice where the last byte is not full. These nodes are valid from opset 13 on and read
constants alone. ONNX Runtime folds them to one constant when a session starts: an int8 one under
DequantizeLinear for integer kernels, else a float one. Names are short, since a small layer has as
many nodes as a large one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxq.graph.editor import add_initializer
from onnxq.numerics.codebook import Codebook
from onnxq.numerics.packing import Field, fields, pack

INTEGERS = ".codes"
"""Suffix of the integer form of a tensor, weight or bias."""
CENTROIDS = ".centroids"
"""Suffix of the table's name."""


def add_lookup(graph: ir.Graph, name: str, codebook: Codebook) -> ir.Value:
    """Add the nodes at the head of the graph; returns the value of the looked-up weight.

    Args:
        graph: the exported graph.
        name: of the weight.
        codebook: the centroids and the indices.
    """
    number = sum(each.endswith(CENTROIDS) for each in graph.initializers)
    table = _constant(graph, f"{name}{CENTROIDS}", codebook.centroids)
    writer = _Lookup(graph, f"k{number}")
    digits = [writer.digits(codebook.indices, each) for each in fields(codebook.centroids.size)]
    index = digits[0]
    for more in digits[1:]:
        index = writer.add("Add", [index, more])
    result = writer.add("Gather", [table, index])
    result.name = f"{name}{INTEGERS}"
    graph.insert_before(graph[0], writer.nodes)
    return result


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """An initializer that the graph's values don't describe a second time."""
    value = add_initializer(graph, name, array)
    value.type = value.shape = None
    return value


class _Lookup:
    """The nodes of one weight, in order; all lookups share constants of shifts and shapes."""

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self._graph, self._prefix = graph, prefix
        self._names = 0
        self.nodes: list[ir.Node] = []

    def digits(self, indices: np.ndarray, field: Field) -> ir.Value:
        """One field's part of each index, int32, in the shape of the weight."""
        packed = pack(indices, field)
        rows = packed if field.per_byte == 1 else packed[:, None]
        stored = _constant(self._graph, self._name(), rows)
        found = self._trits(stored, field) if field.base == 3 else self._bits(stored, field)
        if packed.size * field.per_byte != indices.size:
            flat = self.add("Reshape", [found, self.shared([-1])])
            found = self.add("Slice", [flat, self.shared([0]), self.shared([indices.size])])
        shaped = self.add("Reshape", [found, self.shared(indices.shape)])
        return shaped if field.base == 3 else self.add("Cast", [shaped], to=ir.DataType.INT32)

    def _bits(self, stored: ir.Value, field: Field) -> ir.Value:
        """The digits in their place: up to the top of the byte, down to the end, up again."""
        if field.per_byte == 1:
            return stored
        top = 8 - field.bits * (np.arange(field.per_byte) + 1)
        high = self._shift(stored, top, "LEFT")
        low = self._shift(high, 8 - field.bits, "RIGHT")
        place = field.place.bit_length() - 1
        return self._shift(low, place, "LEFT") if place else low

    def _shift(self, value: ir.Value, by: np.ndarray | int, direction: str) -> ir.Value:
        return self.add("BitShift", [value, self.shared(by, np.uint8)], direction=direction)

    def _trits(self, stored: ir.Value, field: Field) -> ir.Value:
        wide = self.add("Cast", [stored], to=ir.DataType.INT32)
        powers = self.shared(3 ** np.arange(field.per_byte), np.int32)
        high = self.add("Div", [wide, powers])
        low = self.add("Mod", [high, self.shared(3, np.int32)])
        if field.place == 1:
            return low
        return self.add("Mul", [low, self.shared(field.place, np.int32)])

    def shared(
        self, numbers: Sequence[int] | np.ndarray | int, dtype: type[np.generic] = np.int64
    ) -> ir.Value:
        """A small constant that all lookups of the graph share."""
        array = np.asarray(numbers, dtype)
        shape = "v" if array.ndim else "s"
        name = f"k.{array.dtype.char}{shape}" + "x".join(map(str, array.ravel().tolist()))
        known = self._graph.initializers.get(name)
        return known if known is not None else _constant(self._graph, name, array)

    def add(self, op_type: str, inputs: list[ir.Value], **attributes: object) -> ir.Value:
        """Add one node; its output has a short name."""
        node = ir.node(op_type, inputs, attributes, name="")  # type: ignore[arg-type]
        node.outputs[0].name = self._name()
        self.nodes.append(node)
        return node.outputs[0]

    def _name(self) -> str:
        self._names += 1
        return f"{self._prefix}.{self._names}"
