"""BatchNormalization: folded into the layer before it, or made a Mul and an Add."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.graph.editor import Editor
from onnxq.graph.facts import (
    constant,
    input_at,
    is_used,
    only_reader,
    rank,
)
from onnxq.normalise.linear import fold_into_layer, layer_refusal, out_channels, takes_term
from onnxq.normalise.passes import NodePass


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
