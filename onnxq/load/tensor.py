"""A tensor kept in a file of its own, as the model zoo's test data is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from onnxq.errors import UnreadableError, reason_of
from onnxq.load.tensors import data_problem, is_external


def load_tensor(path: Path) -> tuple[str, np.ndarray]:
    """Name and values of the serialised TensorProto in a `.pb` file.

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
