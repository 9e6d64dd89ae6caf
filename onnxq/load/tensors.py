"""Every tensor in a model file, and whether its data are what its type and shape say.

ONNX Runtime trusts lengths in places, and reads beyond the data of a damaged file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx
import onnx_ir as ir
from google.protobuf.message import Message

_FIELDS = {
    "float_data": ("FLOAT", "COMPLEX64"),
    "double_data": ("DOUBLE", "COMPLEX128"),
    "int64_data": ("INT64",),
    "uint64_data": ("UINT64", "UINT32"),
    "string_data": ("STRING",),
}
"""The field that holds a tensor's values, by its type; all other types have `int32_data`."""

_FIELD_OF = {name: field for field, names in _FIELDS.items() for name in names}


def all_tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Every tensor in a message: of graphs, attributes, sub-graphs, functions and sparse tensors.

    It looks at all fields there are, so that no place of a tensor can be forgotten.
    """
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for part in _parts(message):
        yield from all_tensors(part)


def inner_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor but the initializers of the main graph."""
    for part in (*_parts(proto, but="graph"), *_parts(proto.graph, but="initializer")):
        yield from all_tensors(part)


def _parts(message: Message, but: str = "") -> Iterator[Message]:
    """The messages in the fields of a message, except one field."""
    for field, value in message.ListFields():
        if field.message_type is not None and field.name != but:
            yield from (value,) if isinstance(value, Message) else value


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's values are in another file."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of the tensor's values, by its type and shape; of a type of fixed width."""
    return -(-_size(tensor) * ir.DataType(tensor.data_type).bitwidth // 8)


def shape_problem(tensor: onnx.TensorProto) -> str | None:
    """Why type and shape of a tensor are none; None where they are."""
    try:
        known = ir.DataType(tensor.data_type) != ir.DataType.UNDEFINED
    except ValueError:
        known = False
    if not known:
        return f"its element type is {tensor.data_type}, which ONNX does not have"
    if min(tensor.dims, default=0) < 0:
        return f"its shape is {_shape(tensor)}"
    if tensor.HasField("segment"):
        return "it is a segment of a tensor, which ONNX Runtime does not read"
    return None


def data_problem(tensor: onnx.TensorProto) -> str | None:
    """Why the values in a tensor do not fit its type and shape; None where they do.

    Args:
        tensor: one whose values are not in another file.
    """
    if (problem := shape_problem(tensor)) is not None:
        return problem
    kind = ir.DataType(tensor.data_type)
    if tensor.HasField("raw_data") and kind != ir.DataType.STRING:
        found, wanted, unit = len(tensor.raw_data), tensor_bytes(tensor), "bytes"
    else:
        field = _FIELD_OF.get(kind.name, "int32_data")
        found, wanted, unit = len(getattr(tensor, field)), _values(tensor), "values"
    if found == wanted:
        return None
    return f"it holds {found} {unit}, where {kind.name.lower()} {_shape(tensor)} takes {wanted}"


def _values(tensor: onnx.TensorProto) -> int:
    """The values of a typed field: complex numbers take two, several small integers share one."""
    kind, count = ir.DataType(tensor.data_type), _size(tensor)
    if kind.name.startswith("COMPLEX"):
        return 2 * count
    if kind != ir.DataType.STRING and kind.bitwidth in (2, 4):
        return tensor_bytes(tensor)
    return count


def _size(tensor: onnx.TensorProto) -> int:
    count: int = math.prod(tensor.dims)
    return count


def _shape(tensor: onnx.TensorProto) -> str:
    return "(" + ", ".join(map(str, tensor.dims)) + ")"
