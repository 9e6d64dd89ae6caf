"""Folding a factor and a term per output channel into the layer before them.

For y = W∗x + b and z = s·y + t, channel by channel, z = (s·W)∗x + (s·b + t): a layer that already
has a bias b adds s·b. Computed in float64, stored in the dtype of the weight.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph.editor import Editor
from onnxq.graph.facts import input_at, is_op, rank
from onnxq.graph.scaled_weight import scaled_weight, shares, usable_factor, weight_array

LINEAR_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def layer_refusal(node: ir.Node | None) -> str | None:
    """Why nothing can be folded into the node; None where it can.

    The weight must be a constant, and so must a bias of one number per output channel.
    """
    if node is None or not is_op(node, *LINEAR_OPS):
        return "it does not follow a layer with weights"
    weight = weight_array(input_at(node, 1))
    if weight is None:
        return f"the weight of '{node.name}' is not constant"
    if node.op_type == "MatMul" and (weight.ndim != 2 or rank(node.inputs[0]) is None):
        return f"'{node.name}' is not a product with one matrix"
    if not np.issubdtype(weight.dtype, np.floating):
        return f"the weight of '{node.name}' is not float"
    bias = input_at(node, 2)
    if bias is None:
        return None
    array = weight_array(bias)
    if array is None:
        return f"the bias of '{node.name}' is not constant"
    if array.size not in (1, out_channels(node)) or array.shape[-1:] not in ((array.size,), ()):
        return f"the bias of '{node.name}' is not one number per channel"
    return None


def out_channels(node: ir.Node) -> int:
    """The number of output channels of a layer that `layer_refusal` accepts."""
    weight = weight_array(node.inputs[1])
    assert weight is not None
    if node.op_type == "ConvTranspose":
        return int(weight.shape[1]) * node.attributes.get_int("group", 1)
    return int(weight.shape[_weight_channel_axis(node)])


def takes_term(node: ir.Node) -> bool:
    """Whether the layer can hold a bias; a MatMul can only by becoming a Gemm."""
    return node.op_type != "MatMul" or rank(node.inputs[0]) == 2


def fold_into_layer(editor: Editor, node: ir.Node, scale: np.ndarray, term: np.ndarray) -> ir.Node:
    """Make the layer compute `scale·y + term` per output channel.

    A weight that others read too is unchanged, and the layer reads it under a factor; a small one
    is copied. A bias becomes an initializer of the layer's own.

    Args:
        editor: of the graph that the layer is in.
        node: a layer that `layer_refusal` accepts.
        scale: float64 `(out_channels,)`.
        term: float64 `(out_channels,)`.

    Returns:
        The layer; a new node where a MatMul had to become a Gemm.
    """
    weight = weight_array(node.inputs[1])
    assert weight is not None and node.inputs[1] is not None
    shifted = scale * _bias(node) + term
    new_weight = node.inputs[1]
    if not np.all(scale == 1):
        new_weight = times_factor(editor, node, scale)
    if node.op_type == "MatMul" and not shifted.any():
        node.replace_input_with(1, new_weight)
        return node
    new_bias = editor.initializer(f"{node.name}_bias", shifted.astype(weight.dtype))
    if node.op_type == "MatMul":
        inputs = [node.inputs[0], new_weight, new_bias]
        gemm = editor.node("Gemm", inputs, name=str(node.name), keep_name=True)
        editor.replace(node, [gemm])
        return gemm
    node.replace_input_with(1, new_weight)
    node.resize_inputs(3)
    node.replace_input_with(2, new_bias)
    if "beta" in node.attributes:
        del node.attributes["beta"]  # it is in the bias now
    return node


def times_factor(editor: Editor, node: ir.Node, scale: np.ndarray) -> ir.Value:
    """The layer's weight times a factor: a shared weight under a Mul, or a new constant.

    Args:
        editor: of the graph that the layer is in, which gets the Mul.
        node: a layer that `layer_refusal` accepts; it isn't changed.
        scale: float64 `(out_channels,)`.
    """
    value, weight = node.inputs[1], weight_array(node.inputs[1])
    assert value is not None and weight is not None
    vector = _along_channels(node, scale, weight)
    known = scaled_weight(value)
    factor = vector if known is None else vector * weight_array(known.factor)
    if shares(value) and node.op_type != "ConvTranspose" and usable_factor(factor):
        shared = value if known is None else known.weight
        spread = editor.initializer(f"{node.name}_factor", factor.astype(weight.dtype))
        product = editor.node("Mul", [shared, spread], name=f"{node.name}_scaled")
        product.outputs[0].type, product.outputs[0].shape = value.type, ir.Shape(weight.shape)
        editor.graph.insert_before(node, product)
        return product.outputs[0]
    scaled = weight.astype(np.float64) * vector
    return editor.initializer(f"{node.name}_weight", scaled.astype(weight.dtype))


def _weight_channel_axis(node: ir.Node) -> int:
    if node.op_type == "MatMul":
        return 1
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 0


def _along_channels(node: ir.Node, vector: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The vector in a shape that broadcasts along the channels of `weight`."""
    if node.op_type == "ConvTranspose":
        # The weight is (in_channels, out_channels/group, ...); group g has its own inputs.
        groups = node.attributes.get_int("group", 1)
        per_group = np.repeat(vector.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        return per_group.reshape(weight.shape[:2] + (1,) * (weight.ndim - 2))
    shape = [1] * weight.ndim
    shape[_weight_channel_axis(node)] = -1
    return vector.reshape(shape)


def _bias(node: ir.Node) -> np.ndarray:
    """The bias as it is added, float64 `(out_channels,)`; zeros where there is none."""
    array = weight_array(input_at(node, 2))
    if array is None:
        return np.zeros(out_channels(node))
    factor = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0
    return np.broadcast_to(factor * array.astype(np.float64).reshape(-1), (out_channels(node),))
