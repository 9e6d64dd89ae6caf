"""Floats of a 16-bit original back in 16 bits: a constant under a Cast.

The Cast is folded when a session starts. Nothing is rounded: what is not a 16-bit number exactly
stays float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.load.float_types import half_type

LEAST_ELEMENTS = 64
"""A Cast with its names takes about as many bytes as halving so many floats spares."""


def store_halves(model: ir.Model) -> None:
    """Store float32 constants that fit in 16 bits so, in place, where the original did.

    Args:
        model: a lowered model; its metadata says how the original stored its weights.
    """
    dtype = half_type(model)
    if dtype is None:
        return
    for graph in list(model.graphs()):
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or tensor.dtype is not ir.DataType.FLOAT or value.is_graph_output():
                continue
            half = _exact(tensor, dtype) if tensor.size >= LEAST_ELEMENTS else None
            if half is not None:
                _store(graph, value, half)


def _exact(tensor: ir.TensorProtocol, dtype: ir.DataType) -> np.ndarray | None:
    array = tensor.numpy()
    with np.errstate(over="ignore"):
        half = array.astype(dtype.numpy())
    same = np.array_equal(half.astype(np.float32), array, equal_nan=True)
    return half if same else None


def _store(graph: ir.Graph, value: ir.Value, half: np.ndarray) -> None:
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{value.name}.cast")
    wide = cast.outputs[0]
    wide.name = f"{value.name}.wide"
    wide.type, wide.shape = value.type, value.shape
    for node, index in [use for use in value.uses() if use[0] is not cast]:
        node.replace_input_with(index, wide)
    tensor = ir.tensor(half, name=value.name)
    value.const_value, value.type = tensor, ir.TensorType(tensor.dtype)
    graph.insert_before(graph[0], cast)
