"""BatchNormalization that no layer can take becomes a factor and a term."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.normalise.batch_norm import batch_norm_affine, batch_norm_refusal
from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import constant, rank
from onnxq.normalise.passes import NodePass


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
