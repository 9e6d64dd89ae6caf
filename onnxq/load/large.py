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
