"""Weights of MatMul that are one matrix lose their leading ones."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.graph.products import SHARED, may_copy
from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import constant, rank
from onnxq.normalise.passes import NodePass
from onnxq.normalise.weight_forms import rearranged


class SqueezeWeight(NodePass):
    """Turns MatMul with weights (1, …, 1, K, N) into MatMul with (K, N), an integer kernel's form.

    Where the weights have more dimensions than the input, the input gets the ones.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"MatMul"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the weights stay; None where they become a matrix."""
        data, weight = node.inputs[0], constant(node.inputs[1])
        if weight is None or constant(data) is not None:
            return "its second operand is not its weights"
        if weight.ndim < 3 or any(size != 1 for size in weight.shape[:-2]):
            return "its weights have no leading ones, or not only those"
        if rank(data) in (None, 0):
            return "the rank of its input is not known"
        return None if may_copy(node.inputs[1]) else SHARED

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """MatMul, behind an Unsqueeze where the input lacks dimensions; it keeps its name."""
        data, weight, array = node.inputs[0], node.inputs[1], constant(node.inputs[1])
        count = rank(data)
        assert weight is not None and array is not None and count is not None
        matrix = rearranged(editor, weight, range(array.ndim), array.shape[-2:])
        # A vector is a row without its first dimension, and so is what comes of it.
        missing = array.ndim - max(count, 2)
        before = []
        if missing > 0:
            axes = editor.initializer(f"{node.name}_axes", np.arange(missing))
            before = [editor.node("Unsqueeze", [data, axes], name=f"{node.name}_unsqueeze")]
            data = before[0].outputs[0]
        product = editor.node("MatMul", [data, matrix], name=str(node.name), keep_name=True)
        editor.replace(node, [*before, product])
