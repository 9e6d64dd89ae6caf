"""Constants of the exported graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

CODES = ".codes"
"""Suffix of the integer form of a tensor, weight or bias."""
SCALE = ".scale"
"""Suffix of its scale."""


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer of the graph."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype))
    value.shape = ir.Shape(array.shape)
    graph.register_initializer(value)
    return value
