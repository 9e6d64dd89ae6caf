"""Clip from zero upwards is Relu."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import constant, input_at
from onnxq.normalise.passes import NodePass


class ClipToRelu(NodePass):
    """Replaces `Clip(x, 0)` and `Clip(x, 0, m)` with an m that no float exceeds by Relu."""

    op_types: ClassVar[frozenset[str]] = frozenset({"Clip"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the Clip stays; None where it is a Relu."""
        low, high = constant(input_at(node, 1)), input_at(node, 2)
        if low is None or low.size != 1 or not np.issubdtype(low.dtype, np.floating):
            return "its lower limit is no constant float"
        if float(low.reshape(())) != 0.0:
            return "its lower limit is not zero"
        if high is None:
            return None
        limit = constant(high)
        if limit is None or limit.size != 1:
            return "its upper limit is not constant"
        if limit.reshape(())[()] < np.finfo(limit.dtype).max:
            return "it has an upper limit"
        return None

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """A Relu of the same name."""
        relu = editor.node("Relu", [node.inputs[0]], name=str(node.name), keep_name=True)
        editor.replace(node, [relu])
