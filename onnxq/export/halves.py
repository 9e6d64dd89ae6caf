"""Floats of a 16-bit original back in 16 bits: a constant under a Cast.

The Cast is folded when a session starts.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.load.float_types import halved_constants


def store_halves(model: ir.Model) -> None:
    """Store float32 constants that fit in 16 bits so, in place, where the original did.

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
