"""BatchNormalization folded into the layer before it."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.normalise.batch_norm import batch_norm_affine, batch_norm_refusal
from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import only_reader, rank
from onnxq.normalise.linear import fold_into_layer, layer_refusal, out_channels, takes_term
from onnxq.normalise.passes import NodePass


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
