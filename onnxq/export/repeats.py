"""Constants that repeat along an axis, stored once and spread when a session starts."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.export.constants import add_constant
from onnxq.numerics.collapse import collapsed

WORTH = 80
"""Bytes that must be saved: an Expand takes up to as many, with its constants."""

RANKS = {ir.DataType.FLOAT: 1, ir.DataType.INT32: 1, ir.DataType.INT8: 2}
"""Least rank by type: int8 of rank 1 are zero points, which are small and shared."""


def spread_repeats(graph: ir.Graph) -> None:
    """Replace such constants of a graph by Expand nodes at its head, in place.

    ONNX Runtime folds them when a session starts.
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
    small = add_constant(graph, f"{name}.once", once)
    shape = add_constant(graph, f"{name}.shape", np.array(array.shape, np.int64))
    node = ir.node("Expand", [small, shape], name=f"{name}.spread")
    result = node.outputs[0]
    result.type, result.shape = value.type, value.shape
    value.replace_all_uses_with(result)
    del graph.initializers[name]
    result.name = name
    graph.insert_before(graph[0], node)
