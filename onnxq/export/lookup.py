"""Write a codebook: packed indices, nodes that unpack them, and a Gather from the table.

    bytes -> BitShift ... -> Reshape -> Cast           a field of bits
    bytes -> Cast -> Div -> Mod -> Mul -> Reshape      a ternary digit
    sum of the fields -> Gather(centroids)

with a Slice where the last byte is not full. These nodes are valid from opset 13 on and read
constants alone. ONNX Runtime folds them to one constant when a session starts: an int8 one under
DequantizeLinear for integer kernels, else a float one. Names are short, since a small layer has as
many nodes as a large one.

The rows of a table that is only looked up are packed each in bytes of its own, and only those that
a run looks up are unpacked:

    Gather(bytes, indices) -> BitShift ... -> Concat -> Cast          a field of bits
    Gather(bytes, indices) -> Cast -> Div -> Mod -> Concat -> Mul     ternary digits
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxq.graph.editor import add_initializer
from onnxq.numerics.codebook import Codebook, uniform_bits
from onnxq.numerics.packing import Field, fields, pack, pack_rows

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
    result = writer.add("Gather", [table, writer.total(digits)])
    result.name = f"{name}{INTEGERS}"
    graph.insert_before(graph[0], writer.nodes)
    return result


class PackedTable:
    """A table whose rows are packed each in bytes of its own.

    Args:
        graph: the exported graph.
        name: of the table.
        codebook: the centroids, and the index of each element; a table of all integers of n bits
            stands for packed integers.

    Attributes:
        packed: uint8, the table's shape but for its last axis, which holds the bytes of one field
            behind those of another.
    """

    def __init__(self, graph: ir.Graph, name: str, codebook: Codebook) -> None:
        self._graph, self._width = graph, codebook.indices.shape[-1]
        self._fields = fields(codebook.centroids.size)
        rows = [pack_rows(codebook.indices, each) for each in self._fields]
        self._sizes = [each.shape[-1] for each in rows]
        self.packed = _constant(graph, f"{name}{INTEGERS}", np.concatenate(rows, axis=-1))
        self._largest, self._centroids = codebook.centroids.size // 2, None
        if uniform_bits(codebook.centroids) is None:
            self._centroids = _constant(graph, f"{name}{CENTROIDS}", codebook.centroids)

    def unpack(self, rows: ir.Value, prefix: str) -> list[ir.Node]:
        """New nodes that convert rows that were looked up to float; the last one gives them.

        Args:
            rows: of `packed`, in any number of leading dimensions.
            prefix: of the new names.
        """
        writer, start, digits = _Lookup(self._graph, prefix), 0, []
        for each, size in zip(self._fields, self._sizes, strict=True):
            stored = rows
            if len(self._fields) > 1:
                stored = writer.slice(rows, start, start + size)
            digits.append(writer.row_digits(stored, each, size, self._width))
            start += size
        index = writer.total(digits)
        if self._centroids is not None:
            writer.add("Gather", [self._centroids, index])
        else:
            real = writer.add("Cast", [index], to=ir.DataType.FLOAT)
            writer.add("Sub", [real, writer.shared(self._largest, np.float32)])
        return writer.nodes


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

    def row_digits(self, stored: ir.Value, field: Field, size: int, width: int) -> ir.Value:
        """One field's part of each index, int32, of rows of `size` bytes for `width` elements."""
        if field.base == 3:
            stored = self.add("Cast", [stored], to=ir.DataType.INT32)
        parts = [self._digit(stored, field, i) for i in range(field.per_byte)]
        found = self.add("Concat", parts, axis=-1) if len(parts) > 1 else parts[0]
        if size * field.per_byte != width:
            found = self.slice(found, 0, width)
        found = self._placed(found, field)
        return found if field.base == 3 else self.add("Cast", [found], to=ir.DataType.INT32)

    def _digit(self, stored: ir.Value, field: Field, number: int) -> ir.Value:
        """One digit of each byte."""
        if field.base == 3:
            high = stored
            if number:
                high = self.add("Div", [stored, self.shared(3**number, np.int32)])
            return self.add("Mod", [high, self.shared(3, np.int32)])
        above = 8 - field.bits * (number + 1)
        high = self._shift(stored, above, "LEFT") if above else stored
        return self._shift(high, 8 - field.bits, "RIGHT") if field.per_byte > 1 else high

    def _placed(self, digits: ir.Value, field: Field) -> ir.Value:
        """Digits times their place."""
        if field.place == 1:
            return digits
        if field.base == 3:
            return self.add("Mul", [digits, self.shared(field.place, np.int32)])
        return self._shift(digits, field.place.bit_length() - 1, "LEFT")

    def total(self, digits: Sequence[ir.Value]) -> ir.Value:
        """The sum of all fields."""
        index = digits[0]
        for more in digits[1:]:
            index = self.add("Add", [index, more])
        return index

    def slice(self, value: ir.Value, start: int, end: int) -> ir.Value:
        """Elements of the last axis."""
        bounds = [self.shared([each]) for each in (start, end, -1)]
        return self.add("Slice", [value, *bounds])

    def _bits(self, stored: ir.Value, field: Field) -> ir.Value:
        """The digits in their place: up to the top of the byte, down to the end, up again."""
        if field.per_byte == 1:
            return stored
        top = 8 - field.bits * (np.arange(field.per_byte) + 1)
        high = self._shift(stored, top, "LEFT")
        return self._placed(self._shift(high, 8 - field.bits, "RIGHT"), field)

    def _shift(self, value: ir.Value, by: np.ndarray | int, direction: str) -> ir.Value:
        return self.add("BitShift", [value, self.shared(by, np.uint8)], direction=direction)

    def _trits(self, stored: ir.Value, field: Field) -> ir.Value:
        wide = self.add("Cast", [stored], to=ir.DataType.INT32)
        powers = self.shared(3 ** np.arange(field.per_byte), np.int32)
        high = self.add("Div", [wide, powers])
        return self._placed(self.add("Mod", [high, self.shared(3, np.int32)]), field)

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
