"""Per-channel factors and terms, BatchNormalization among them, folded into the layer before.

For y = W∗x + b and z = s·y + t, channel by channel, z = (s·W)∗x + (s·b + t): a layer that already
has a bias b adds s·b. Computed in float64, stored in the dtype of the weight.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.graph.editor import Editor
from onnxq.graph.facts import (
    constant,
    input_at,
    is_op,
    is_used,
    only_reader,
    rank,
)
from onnxq.graph.scaled_weight import scaled_weight, shares, usable_factor, weight_array
from onnxq.normalise.passes import NodePass

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


def batch_norm_refusal(node: ir.Node) -> str | None:
    """Why a BatchNormalization is not a fixed factor and term; None where it is."""
    if node.attributes.get_int("training_mode", 0) or any(is_used(v) for v in node.outputs[1:]):
        return "it is in training mode"
    parameters = [constant(input_at(node, index)) for index in range(1, 5)]
    if any(array is None for array in parameters):
        return "its parameters are not constant"
    if len({array.shape for array in parameters if array is not None}) > 1:
        return "its parameters differ in shape"
    return None


def batch_norm_affine(node: ir.Node) -> tuple[np.ndarray, np.ndarray]:
    """Factor s and term t with BN(x) = s·x + t, float64 `(channels,)` each.

    s = γ / √(σ² + ε) and t = β − s·μ (Ioffe & Szegedy 2015, algorithm 2).
    """
    parameters = [constant(node.inputs[index]) for index in range(1, 5)]
    gamma, beta, mean, variance = (p.astype(np.float64) for p in parameters if p is not None)
    scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return scale, beta - scale * mean


class BatchNormToAffine(NodePass):
    """Replaces BatchNormalization by Mul and Add with constants of shape `(C, 1, …, 1)`."""

    op_types: ClassVar[frozenset[str]] = frozenset({"BatchNormalization"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the BatchNormalization stays; None where it is replaced."""
        if reason := batch_norm_refusal(node):
            return reason
        if rank(node.inputs[0]) is None:
            return "the rank of its input is not known"
        return None

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """Mul by s, Add of t."""
        source = node.inputs[0]
        gamma = constant(node.inputs[1])
        assert source is not None and source.shape is not None and gamma is not None
        scale, term = (
            vector.astype(gamma.dtype).reshape((-1,) + (1,) * max(len(source.shape) - 2, 0))
            for vector in batch_norm_affine(node)
        )
        mul = editor.node(
            "Mul", [source, _initializer(editor, node, "scale", scale)], name=f"{node.name}_scale"
        )
        mul.outputs[0].type, mul.outputs[0].shape = source.type, source.shape
        add = editor.node(
            "Add",
            [mul.outputs[0], _initializer(editor, node, "bias", term)],
            name=str(node.name),
            keep_name=True,
        )
        editor.replace(node, [mul, add])


def _initializer(editor: Editor, node: ir.Node, part: str, array: np.ndarray) -> ir.Value:
    return editor.initializer(f"{node.name}_{part}_value", array)


class FoldBatchNorm(NodePass):
    """Folds BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul before it.

    W_fold = γ·W/√(σ² + ε), b_fold = β + γ·(b − μ)/√(σ² + ε): FAT's folding with the term
    γ·b/√(σ² + ε) that a layer with a bias b adds.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"BatchNormalization"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the BatchNormalization stays; None where it is folded."""
        if reason := batch_norm_refusal(node):
            return reason
        source = node.inputs[0]
        assert source is not None
        layer = source.producer()
        if reason := layer_refusal(layer):
            return reason
        assert layer is not None
        if only_reader(source) is not node:
            return f"the output of '{layer.name}' is used elsewhere too"
        if layer.op_type == "MatMul" and rank(layer.inputs[0]) != 2:
            return f"the channels of '{layer.name}' are not on axis 1"
        if not takes_term(layer) or batch_norm_affine(node)[0].size != out_channels(layer):
            return f"its channels are not those of '{layer.name}'"
        return None

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """Fold it and hand the layer's output to its readers."""
        source = node.inputs[0]
        assert source is not None
        layer = source.producer()
        assert layer is not None
        scale, term = batch_norm_affine(node)
        layer = fold_into_layer(editor, layer, scale, np.asarray(term))
        editor.take_over(node.outputs[0], layer.outputs[0])
        editor.remove([node])


class FoldAffine(NodePass):
    """Folds Mul, Div, Add and Sub with a constant per channel into the layer before them.

    The layer is a Conv, ConvTranspose, Gemm, MatMul or BatchNormalization; the latter keeps
    its statistics and takes s·γ and s·β + t. This covers Conv → Add(bias), MatMul →
    Add(bias), and a Mul and Add pair that stands for BatchNormalization.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Mul", "Div", "Add", "Sub"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the node stays; None where it is folded."""
        found = _operands(node)
        if found is None:
            return "it has no constant operand on the foldable side"
        layer, vector = found[0].producer(), found[1]
        reason = _target_refusal(layer)
        if reason is not None or layer is None:
            return reason
        if only_reader(found[0]) is not node:
            return f"the output of '{layer.name}' is used elsewhere too"
        if (found_rank := rank(found[0])) is None:
            return f"the rank of the output of '{layer.name}' is not known"
        if (
            _per_channel(vector, _channel_axis(layer, found_rank), found_rank, _channels(layer))
            is None
        ):
            return "its constant is not one number per channel"
        if node.op_type in ("Add", "Sub") and not _takes_term(layer):
            return f"'{layer.name}' can't hold a bias"
        return None

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """Fold it and hand the layer's output to its readers."""
        found = _operands(node)
        assert found is not None
        layer, output_rank = found[0].producer(), rank(found[0])
        assert layer is not None and output_rank is not None
        axis = _channel_axis(layer, output_rank)
        vector = _per_channel(found[1], axis, output_rank, _channels(layer))
        assert vector is not None
        scale, term = _affine(node, vector)
        if layer.op_type == "BatchNormalization":
            _fold_into_batch_norm(editor, layer, scale, term)
        else:
            layer = fold_into_layer(editor, layer, scale, term)
        editor.take_over(node.outputs[0], layer.outputs[0])
        editor.remove([node])


def _operands(node: ir.Node) -> tuple[ir.Value, np.ndarray] | None:
    """The computed operand and the constant one; None where there are not one of each."""
    left, right = node.inputs[0], node.inputs[1]
    array = weight_array(right)
    if array is not None and left is not None and weight_array(left) is None:
        return left, array
    array = weight_array(left)
    if node.op_type in ("Mul", "Add") and array is not None and right is not None:
        return (right, array) if weight_array(right) is None else None
    return None


def _target_refusal(layer: ir.Node | None) -> str | None:
    if layer is not None and is_op(layer, "BatchNormalization"):
        return batch_norm_refusal(layer)
    return layer_refusal(layer)


def _channels(layer: ir.Node) -> int:
    if layer.op_type == "BatchNormalization":
        gamma = constant(layer.inputs[1])
        assert gamma is not None
        return int(gamma.size)
    return out_channels(layer)


def _channel_axis(layer: ir.Node, output_rank: int) -> int:
    return output_rank - 1 if layer.op_type == "MatMul" else 1


def _takes_term(layer: ir.Node) -> bool:
    return layer.op_type == "BatchNormalization" or takes_term(layer)


def _per_channel(
    array: np.ndarray, axis: int, output_rank: int, channels: int
) -> np.ndarray | None:
    """The constant as float64 `(channels,)` if it broadcasts along the other axes only."""
    if not np.issubdtype(array.dtype, np.floating) or array.ndim > output_rank:
        return None
    shape = (1,) * (output_rank - array.ndim) + array.shape
    if any(size != 1 for index, size in enumerate(shape) if index != axis):
        return None
    if shape[axis] not in (1, channels):
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,))


def _affine(node: ir.Node, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ones, zeros = np.ones_like(vector), np.zeros_like(vector)
    match node.op_type:
        case "Mul":
            return vector, zeros
        case "Div":
            return 1 / vector, zeros
        case "Add":
            return ones, vector
        case _:
            return ones, -vector


def _fold_into_batch_norm(
    editor: Editor, node: ir.Node, scale: np.ndarray, term: np.ndarray
) -> None:
    gamma, beta = constant(node.inputs[1]), constant(node.inputs[2])
    assert gamma is not None and beta is not None
    new_gamma, new_beta = (gamma * scale).astype(gamma.dtype), (beta * scale + term)
    node.replace_input_with(1, editor.initializer(f"{node.name}_gamma", new_gamma))
    node.replace_input_with(2, editor.initializer(f"{node.name}_beta", new_beta.astype(beta.dtype)))
