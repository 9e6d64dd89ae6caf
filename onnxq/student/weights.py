"""The weights of a layer as a matrix: output axis, inputs and their patches."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.numerics.gptq import Geometry
from onnxq.plan.spec import LayerSpec

Floats = NDArray[np.float64]

LAYER_TYPES = ("Conv", "Gemm")


def weight_refusal(node: ir.Node) -> str | None:
    """Why the weight and bias of a Conv or Gemm can't be rewritten; None where they can."""
    if node.op_type == "Gemm" and node.attributes.get_int("transA"):
        return f"'{node.name}' transposes its input"
    for value in node.inputs[1:]:
        if value is None:
            continue
        if value.const_value is None or value.is_graph_input():
            return f"'{value.name}' of '{node.name}' is not constant"
        if len(value.uses()) != 1 or value.is_graph_output():
            return f"'{value.name}' of '{node.name}' is shared"
        dtype = value.const_value.dtype
        if dtype != ir.DataType.FLOAT:
            return f"'{value.name}' of '{node.name}' has the type '{dtype}', not FLOAT"
    return None


def out_channels(node: ir.Node) -> int:
    """The number of output channels of a Conv or Gemm."""
    rows, columns = _array(node, 1).shape[:2]
    transposed = node.op_type == "Conv" or node.attributes.get_int("transB")
    return int(rows if transposed else columns)


def in_features(node: ir.Node) -> int:
    """The number of input channels of a Conv, or the row length of a Gemm."""
    rows, columns = _array(node, 1).shape[:2]
    if node.op_type == "Conv":
        return int(columns) * node.attributes.get_int("group", 1)
    return int(columns if node.attributes.get_int("transB", 0) else rows)


def read_weight(node: ir.Node, in_channels: int) -> Floats:
    """The weight as ``(groups, out, in, kernel)`` float64.

    Args:
        node: a Conv or a Gemm.
        in_channels: channels of the input; a Gemm that reads flattened channels has several
            neighbouring features for each.
    """
    return split_weight(node, _array(node, 1), in_channels)


def split_weight(node: ir.Node, array: NDArray[np.floating], in_channels: int) -> Floats:
    """An array of the weight's shape, in the shape that `read_weight` returns."""
    weight = array.astype(np.float64)
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        return weight.reshape(groups, -1, weight.shape[1], int(np.prod(weight.shape[2:])))
    if not node.attributes.get_int("transB", 0):
        weight = weight.T
    return weight.reshape(1, weight.shape[0], in_channels, -1)


def write_weight(node: ir.Node, weight: Floats) -> None:
    """Replace the node's weight by ``(groups, out, in, kernel)`` weights."""
    _replace(node.inputs[1], join_weight(node, weight))


def join_weight(node: ir.Node, weight: Floats) -> Floats:
    """``(groups, out, in, kernel)`` weights in the node's own shape."""
    shape = _array(node, 1).shape
    if node.op_type == "Gemm" and not node.attributes.get_int("transB", 0):
        weight = weight.reshape(shape[::-1]).T
    return weight.reshape(shape)


def scale_bias(node: ir.Node, factor: Floats) -> None:
    """Multiply the bias, where there is one, by a factor per output channel."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        # A Gemm's bias may be (out,), (1, out) or a scalar for all channels.
        _replace(node.inputs[2], _array(node, 2).astype(np.float64) * factor)


def _array(node: ir.Node, index: int) -> NDArray[np.float32]:
    value = node.inputs[index]
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def _replace(value: ir.Value | None, array: Floats) -> None:
    """Give an initializer a new tensor; the old one, which other models may hold, stays."""
    assert value is not None
    data = np.ascontiguousarray(array, dtype=np.float32)
    value.const_value = ir.tensor(data, name=value.name)
    value.shape = ir.Shape(data.shape)


LINEAR = ("Conv", "Gemm", "MatMul")
"""Operators whose outputs are sums over a row of inputs."""
MATRIX_RANK = 2


def layer_geometry(node: ir.Node, spec: LayerSpec, shape: tuple[int, ...]) -> Geometry:
    """The geometry of a Conv, Gemm or MatMul with a weight of this shape."""
    if spec.op_type != "Conv":
        return Geometry(spec.op_type, shape, spec.channel_axis)
    spatial = len(shape) - MATRIX_RANK
    attributes = node.attributes
    return Geometry(
        spec.op_type,
        shape,
        spec.channel_axis,
        attributes.get_int("group", 1),
        tuple(attributes.get_ints("strides", (1,) * spatial)),
        tuple(attributes.get_ints("dilations", (1,) * spatial)),
        tuple(attributes.get_ints("pads", (0,) * 2 * spatial)),
    )
