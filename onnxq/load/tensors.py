"""Tensors of a file: their lengths checked, large ones taken out of the message and put back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message

from onnxq.errors import UnreadableError, reason_of
from onnxq.runtime.weight_files import LARGE, SMALLEST

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

    It visits every field, so that no tensor can be missed.
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
    """Bytes of the tensor's values, by its type (of fixed width) and shape."""
    return -(-_size(tensor) * ir.DataType(tensor.data_type).bitwidth // 8)


def shape_problem(tensor: onnx.TensorProto) -> str | None:
    """What is wrong with a tensor's type or shape; None where both are valid."""
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
    """Why a tensor's values do not match its type and shape; None where they do.

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
    """The number of values in a typed field: complex numbers take two, small integers share one."""
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


def load_tensor(path: Path) -> tuple[str, np.ndarray]:
    """Name and values of the serialized TensorProto in a `.pb` file.

    Raises:
        UnreadableError: the file does not hold a tensor.
    """
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
        if is_external(tensor):
            raise ValueError("it has its values in another file")
        if (problem := data_problem(tensor)) is not None:
            raise ValueError(problem)
        return tensor.name, onnx.numpy_helper.to_array(tensor)
    except (OSError, DecodeError, ValueError, TypeError, KeyError) as error:
        reason = reason_of(error)
        raise UnreadableError(
            f"Can't read a tensor from '{path}': {reason}; expected a serialised TensorProto."
        ) from error


OUTSIDE = "onnxq.weight"
"""The location of a weight that was taken out."""


def take_out_weights(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The message without its large weights, and these by name; small models stay whole.

    Args:
        proto: it must not be used afterwards.
    """
    large = [t for t in proto.graph.initializer if len(t.raw_data) >= SMALLEST]
    if sum(len(tensor.raw_data) for tensor in large) < LARGE:
        return proto, {}
    arrays = {}
    for tensor in large:
        arrays[tensor.name] = onnx.numpy_helper.to_array(tensor)
        onnx.external_data_helper.set_external_data(tensor, OUTSIDE)
        tensor.ClearField("raw_data")
    return onnx.ModelProto.FromString(proto.SerializeToString()), arrays


def put_in_weights(model: ir.Model, arrays: dict[str, np.ndarray], folder: Path) -> None:
    """Put the weights back that were taken out, and set the folder of the external data.

    Args:
        model: of the message of `take_out_weights`, changed in place.
        arrays: the weights by name.
        folder: of the external data files.
    """
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if value.name in arrays:
            value.const_value = ir.tensor(arrays[value.name], name=value.name)
        elif isinstance(tensor, ir.ExternalTensor):
            tensor.base_dir = folder
            if tensor.nbytes < SMALLEST:
                value.const_value = ir.tensor(tensor.numpy().copy(), name=value.name)
