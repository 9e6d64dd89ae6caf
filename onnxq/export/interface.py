"""Give an exported model the inputs and outputs of the original back."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxq.export.constants import add_constant
from onnxq.load.interface import Interface, Port
from onnxq.normalise.facts import constant, input_at, int_attribute, is_op, static_dim
from onnxq.normalise.infer_shapes import InferShapes

FREE = (0, -1)
"""What a Reshape's first size is where it follows from the input's."""


def restore_interface(model: ir.Model, interface: Interface) -> None:
    """Declare the original's shapes, and what follows from them inside, in place.

    A batch that was freed for learning is fixed again: accelerators want sizes that are known.

    Args:
        model: the lowered model, before its inner shapes are left out.
        interface: of the original.
    """
    graph = model.graph
    fixed = [_declare(*pair) for pair in zip(graph.inputs, interface.inputs, strict=True)]
    if any(fixed):
        _fix_reshapes(model)
    for value, port in zip(graph.outputs, interface.outputs, strict=True):
        _declare(value, port)


def _declare(value: ir.Value, port: Port) -> bool:
    """Whether a dimension that was free has a size now."""
    if port.shape is None:
        return False
    before, value.shape = value.shape, port.shape.copy()
    return before is None or any(
        isinstance(size, int) and size != old for size, old in zip(port.shape, before, strict=True)
    )


def _fix_reshapes(model: ir.Model) -> None:
    """Say the first size of each Reshape that the inputs' sizes decide."""
    graph = model.graph
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    InferShapes()(model)
    for node in graph:
        if not is_op(node, "Reshape") or int_attribute(node, "allowzero", 0):
            continue
        shape, size = constant(input_at(node, 1)), static_dim(node.outputs[0], 0)
        if shape is not None and size is not None and shape.size and shape[0] in FREE:
            numbers = np.array([size, *shape[1:]], np.int64)
            node.replace_input_with(1, _shape(graph, numbers))
    common.RemoveUnusedNodesPass()(model)


def _shape(graph: ir.Graph, numbers: np.ndarray) -> ir.Value:
    name = "shape." + "x".join(map(str, numbers.tolist()))
    known = graph.initializers.get(name)
    return known if known is not None else add_constant(graph, name, numbers)
