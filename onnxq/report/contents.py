"""The contents of a file by kind: bytes, whether they are quantized, and how weights are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.graph.facts import producer, scalar
from onnxq.graph.operators import RECURRENT_OPERATORS, WEIGHT_OPERATORS
from onnxq.load.contents import FUNCTION, OUTPUT, SUBGRAPH, Contents, Reader, StoredTensor
from onnxq.numerics.codebook import uniform_bits
from onnxq.numerics.packing import bits_per_index
from onnxq.verify.opened import table_rows, unpacking_nodes

GRAPH = "graph: nodes, names, shapes"
GAPS = "external data that no tensor names"

_BIASES = ("Conv", "ConvTranspose", "Gemm")
"""Operators whose third input is a bias."""

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")

NO_WEIGHTS = "they are no weights"

_REASONS = {
    "BatchNormalization": "folded into the layer before it where there is one",
    "Gather": "a table that is looked up, not multiplied",
    SUBGRAPH: "they are inside a sub-graph (If, Loop or Scan)",
    FUNCTION: "they are inside a function, which compress writes out where it is called",
}


@dataclass(frozen=True)
class Fates:
    """Whether each layer of a file is quantized.

    Attributes:
        names: layer names of the main graph's nodes, in order.
        nodes: the reason why a layer stays float, or None where it is quantized, by its name.
        weights: the same by the name of its weights.
    """

    names: Sequence[str]
    nodes: Mapping[str, str | None]
    weights: Mapping[str, str | None]

    def of(self, tensor: StoredTensor) -> list[tuple[Reader, str | None]]:
        """The layers that read a tensor, with the reason of each.

        A layer may be known by its weights alone: simplification renames nodes.
        """
        found = []
        for reader in tensor.readers:
            name = "" if reader.place is None else self.names[reader.place]
            if name in self.nodes:
                found.append((reader, self.nodes[name]))
            elif tensor.name in self.weights and reader.operator in WEIGHT_OPERATORS:
                found.append((reader, self.weights[tensor.name]))
        return found


@dataclass(frozen=True)
class ContentRow:
    """The bytes of one kind in a file.

    Attributes:
        what: the kind.
        tensors: number of tensors; shared ones count once.
        bytes: as stored in the file.
        quantized: whether they are weights that are or will be integers.
        largest: name of the largest tensor.
        reason: why they are not quantized; '' where there is nothing to say.
    """

    what: str
    tensors: int
    bytes: int
    quantized: bool = False
    largest: str = ""
    reason: str = ""


def content_rows(contents: Contents, fates: Fates) -> list[ContentRow]:
    """All bytes of a file by kind, the largest first; the sum is the file's size."""
    groups: dict[tuple[str, bool, str], list[StoredTensor]] = {}
    for tensor in contents.tensors:
        groups.setdefault(_kind(tensor, fates), []).append(tensor)
    rows = [
        ContentRow(
            what,
            len(group),
            sum(tensor.bytes for tensor in group),
            quantized,
            max(group, key=lambda tensor: tensor.bytes).name,
            reason,
        )
        for (what, quantized, reason), group in groups.items()
    ]
    rows.append(ContentRow(GRAPH, 0, contents.graph))
    if contents.gaps:
        rows.append(ContentRow(GAPS, 0, contents.gaps))
    return sorted(rows, key=lambda row: -row.bytes)


def _kind(tensor: StoredTensor, fates: Fates) -> tuple[str, bool, str]:
    """The kind of a tensor, whether it is quantized, and why not."""
    if not tensor.readers:
        return "constants that nothing reads", False, "compress leaves them out"
    reader = tensor.readers[0]
    if any(each.operator in _QUANTIZERS and each.index for each in tensor.readers):
        return "scales and zero points of tensors", False, NO_WEIGHTS
    if layers := fates.of(tensor):
        # What layers share is quantized where it is for one of them, and weights before biases.
        return min((_of_layer(*each) for each in layers), key=lambda kind: (not kind[1], kind[2]))
    if tensor.size == 1:
        return "single numbers", False, NO_WEIGHTS
    if not tensor.dtype.is_floating_point() and reader.index is not None:
        return "shapes, indices and other integers", False, NO_WEIGHTS
    if reader.operator == OUTPUT:
        return "constants that the graph returns", False, "the graph gives them unchanged"
    if reader.nested:
        return f"{_role(reader)}, in a {reader.nested}", False, _REASONS[reader.nested]
    if reader.operator in WEIGHT_OPERATORS:
        return _role(reader), False, "normalisation makes something else of it"
    return _role(reader), False, _REASONS.get(reader.operator, "only weights are quantized")


def _of_layer(reader: Reader, reason: str | None) -> tuple[str, bool, str]:
    if _is_bias(reader):
        return _role(reader), False, reason or "int32 where the layer runs in integers"
    return _role(reader), reason is None, reason or ""


def _role(reader: Reader) -> str:
    operator = reader.operator
    if _is_bias(reader):
        return f"biases of {operator}"
    if reader.index is None:
        return f"attributes of {operator}"
    if operator == "Gather":
        return "tables of Gather"
    if operator in (*WEIGHT_OPERATORS, *RECURRENT_OPERATORS, "Einsum"):
        return f"weights of {operator}"
    return f"parameters of {operator}"


def _is_bias(reader: Reader) -> bool:
    return reader.operator in _BIASES and reader.index == 2


_STORED_FORM = ("DequantizeLinear", "Cast", "Mul", "Expand")
"""What stands between integer weights, or a lookup, and the layer that reads them."""

_WIDTHS = {ir.DataType.INT8: 8, ir.DataType.UINT8: 8, ir.DataType.INT4: 4}
"""Bits per integer weight, by type."""


@dataclass(frozen=True)
class Stored:
    """A weight in a file.

    Attributes:
        parameters: number of weights.
        size: bytes that they take.
        num_bits: bits per index, or of the integer type.
        codebook: number of centroids; None for integer weights.
        int4: whether the integers have the type INT4.
        name: of the integers or packed indices.
    """

    parameters: int
    size: int
    num_bits: float
    codebook: int | None = None
    int4: bool = False
    name: str = ""


def stored_weight(value: ir.Value | None) -> Stored | None:
    """How a layer's weight is stored; None where it is not stored in integers."""
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


def stored_table(gather: ir.Node) -> Stored | None:
    """How the table of a lookup is stored; None where it is not stored in integers."""
    table, steps = gather.inputs[0], unpacking_nodes(gather)
    packed = None if table is None else table.const_value
    if packed is None or packed.dtype != ir.DataType.UINT8:
        return stored_weight(table)
    width = table_rows(gather, np.zeros(1, np.int64)).size
    parameters, size, name = len(packed.numpy()) * width, packed.nbytes, str(packed.name)
    book = next((n.inputs[0] for n in steps if n.op_type == "Gather"), None)
    if book is not None and book.const_value is not None:
        centroids = book.const_value
        return Stored(
            parameters, size + centroids.nbytes, bits_per_index(centroids.size), centroids.size,
            name=name,
        )  # fmt: skip
    largest = next(scalar(n.inputs[1]) for n in steps if n.op_type == "Sub")
    assert largest is not None
    return Stored(parameters, size, int(2 * largest + 2).bit_length() - 1, name=name)


def is_dequantized(value: ir.Value | None) -> bool:
    """Whether a weight is the output of a DequantizeLinear, as integer kernels need it."""
    node = producer(value)
    return node is not None and node.op_type == "DequantizeLinear"


def _codebook(gather: ir.Node) -> Stored | None:
    """A table and its packed indices: the first constant of each branch.

    A table of all integers of n bits is no codebook: its indices stand for packed integers.
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
