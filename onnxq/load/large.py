"""Large weights of a model file, kept out of the protobuf message.

A message keeps all its memory for as long as any part of it is read. The weights of a large model
become arrays of their own, or stay in the external data files that hold them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxq.weight_files import LARGE, SMALLEST

OUTSIDE = "onnxq.weight"
"""The location of a weight that was taken out."""


def external_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of the initializers in external data files."""
    return sum(_length(tensor) for tensor in proto.graph.initializer)


def check_external_data(proto: onnx.ModelProto, folder: Path) -> None:
    """Read the last byte of each tensor in an external data file.

    Raises:
        OSError: a file can't be read.
        ValueError: a file is too short.
        onnx.checker.ValidationError: a file is missing, or lies outside the model's folder.
    """
    for tensor in proto.graph.initializer:
        length = _length(tensor)
        if not length:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        end = onnx.helper.make_tensor(tensor.name, onnx.TensorProto.UINT8, [1], b"?", raw=True)
        last = int(entries.get("offset", 0)) + length - 1
        onnx.external_data_helper.set_external_data(end, entries["location"], last, 1)
        end.data_location = onnx.TensorProto.EXTERNAL
        onnx.external_data_helper.load_external_data_for_tensor(end, str(folder))
        if len(end.raw_data) != 1:
            raise ValueError(f"'{entries['location']}' ends before the tensor '{tensor.name}' does")


def take_out_weights(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The message without its large weights, and these by name; small models stay as they are.

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
    """Give a model the weights that were taken out, and the place of its external data.

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


def _length(tensor: onnx.TensorProto) -> int:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return 0
    size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return size * int(np.prod(tensor.dims, dtype=np.int64))
