"""How a file that onnxq wrote stores a layer's weight."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxq.numerics.codebook import uniform_bits
from onnxq.numerics.packing import bits_per_index

_STORED_FORM = ("DequantizeLinear", "Cast", "Mul", "Expand")
"""What stands between integer weights, or a lookup, and the layer that reads them."""

_WIDTHS = {ir.DataType.INT8: 8, ir.DataType.UINT8: 8, ir.DataType.INT4: 4}
"""Bits of a code by the type that holds it."""


@dataclass(frozen=True)
class Stored:
    """A weight in a file.

    Attributes:
        parameters: number of weights.
        size: bytes that they take.
        num_bits: width of an index, or of what holds a code.
        codebook: number of centroids, or None where each weight is stored as a code.
        int4: the codes have the type INT4.
        name: of the codes or packed indices.
    """

    parameters: int
    size: int
    num_bits: float
    codebook: int | None = None
    int4: bool = False
    name: str = ""


def stored_weight(value: ir.Value | None) -> Stored | None:
    """What a layer's weight is made of; None where it is not stored in integers."""
    while value is not None and value.const_value is None:
        node = value.producer()
        if node is not None and node.op_type == "Gather":
            return _codebook(node)
        if node is None or node.op_type not in _STORED_FORM:
            return None
        value = node.inputs[0]
    if value is None or value.const_value is None:
        return None
    tensor = value.const_value
    if tensor.dtype not in _WIDTHS:
        return None
    int4 = tensor.dtype == ir.DataType.INT4
    return Stored(tensor.size, tensor.nbytes, _WIDTHS[tensor.dtype], None, int4, str(value.name))


def is_dequantized(value: ir.Value | None) -> bool:
    """Whether a weight comes out of DequantizeLinear, which integer kernels take in."""
    node = None if value is None else value.producer()
    return node is not None and node.op_type == "DequantizeLinear"


def _codebook(gather: ir.Node) -> Stored | None:
    """A table and the packed indices above it: the first constant of each branch.

    A table of all codes of n bits is no codebook: its indices are codes.
    """
    table = None if gather.inputs[0] is None else gather.inputs[0].const_value
    parameters, packed, waiting, name = 0, 0, [gather.inputs[1]], ""
    while waiting:
        value = waiting.pop()
        if value is None:
            continue
        if value.const_value is not None:
            packed += value.const_value.nbytes
            name = name or str(value.name)
            continue
        node = value.producer()
        if node is None:
            return None
        if node.op_type == "Reshape" and not parameters:
            shape = node.inputs[1]
            assert shape is not None and shape.const_value is not None
            parameters = int(shape.const_value.numpy().prod())
        waiting += node.inputs if node.op_type == "Add" else node.inputs[:1]
    if table is None:
        return None
    size, count = packed + table.nbytes, table.size
    num_bits = uniform_bits(table.numpy())
    if num_bits is not None:
        return Stored(parameters, size, num_bits, name=name)
    return Stored(parameters, size, bits_per_index(count), count, name=name)
