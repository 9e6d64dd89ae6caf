"""A tensor kept in a file of its own, as the model zoo's test data is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from onnxq.errors import UnreadableError, reason_of


def load_tensor(path: Path) -> tuple[str, np.ndarray]:
    """Name and values of the serialised TensorProto in a `.pb` file.

    Raises:
        UnreadableError: the file does not hold a tensor.
    """
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
        if not tensor.data_type:
            raise ValueError("it has no element type")
        return tensor.name, onnx.numpy_helper.to_array(tensor)
    except (OSError, DecodeError, ValueError, TypeError, KeyError) as error:
        reason = reason_of(error)
        raise UnreadableError(
            f"Can't read a tensor from '{path}': {reason}; expected a serialised TensorProto."
        ) from error
