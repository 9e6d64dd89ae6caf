"""Constants of an exported graph: repeated values stored once, 16-bit floats in 16 bits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph.editor import add_initializer
from onnxq.load.float_types import halved_constants
from onnxq.numerics.packing import collapsed

INTEGERS = ".codes"
"""Suffix of the integer form of a tensor, weight or bias."""
SCALE = ".scale"
"""Suffix of its scale."""


WORTH = 80
"""Bytes that must be saved: an Expand takes up to as many, with its constants."""

RANKS = {ir.DataType.FLOAT: 1, ir.DataType.INT32: 1, ir.DataType.INT8: 2}
"""Least rank by type: int8 of rank 1 are zero points, which are small and shared."""


def spread_repeats(graph: ir.Graph) -> None:
    """Replace constants that repeat along an axis by Expand nodes, in place.

    ONNX Runtime folds the nodes when a session starts.
    """
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or value.is_graph_output() or value.is_graph_input():
            continue
        array = tensor.numpy()
        if array.ndim < RANKS.get(tensor.dtype, array.ndim + 1):
            continue
        once = collapsed(array)
        if array.nbytes - once.nbytes >= WORTH:
            _spread(graph, value, array, once)


def _spread(graph: ir.Graph, value: ir.Value, array: np.ndarray, once: np.ndarray) -> None:
    name = str(value.name)
    small = add_initializer(graph, f"{name}.once", once)
    shape = add_initializer(graph, f"{name}.shape", np.array(array.shape, np.int64))
    node = ir.node("Expand", [small, shape], name=f"{name}.spread")
    result = node.outputs[0]
    result.type, result.shape = value.type, value.shape
    value.replace_all_uses_with(result)
    del graph.initializers[name]
    result.name = name
    graph.insert_before(graph[0], node)


def store_halves(model: ir.Model) -> None:
    """Store float32 constants in 16 bits, in place, where they fit and the original did so.

    Args:
        model: a lowered model; its metadata says how the original stored its weights.
    """
    for name, half in halved_constants(model).items():
        _store(model.graph, model.graph.initializers[name], half)


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
