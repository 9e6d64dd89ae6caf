"""PRelu with one slope is LeakyRelu, which has a gradient and an integer kernel."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import constant, rank
from onnxq.normalise.passes import NodePass


class PReluToLeakyRelu(NodePass):
    """Replaces PRelu whose constant slopes are all equal by LeakyRelu."""

    op_types: ClassVar[frozenset[str]] = frozenset({"PRelu"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the PRelu stays; None where it is replaced."""
        slope = constant(node.inputs[1])
        if slope is None or not slope.size:
            return "its slopes are not constant"
        if (slope != slope.reshape(-1)[0]).any():
            return "its slopes differ"
        if slope.ndim > 1 and slope.ndim > (rank(node.inputs[0]) or 0):
            return "its slopes may broadcast the input"
        return None

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """A LeakyRelu of the same name."""
        slope = constant(node.inputs[1])
        assert slope is not None
        leaky = editor.node(
            "LeakyRelu",
            [node.inputs[0]],
            {"alpha": float(slope.reshape(-1)[0])},
            name=str(node.name),
            keep_name=True,
        )
        editor.replace(node, [leaky])
