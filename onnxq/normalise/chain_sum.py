"""Sum of several inputs as a chain of Add, which has a gradient and an integer kernel."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxq.normalise.editor import Editor
from onnxq.normalise.passes import NodePass


class ChainSum(NodePass):
    """Replaces `Sum(a, b, c)` by `Add(Add(a, b), c)`."""

    op_types: ClassVar[frozenset[str]] = frozenset({"Sum"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the Sum stays; None where it is replaced."""
        return None if len(node.inputs) > 1 else "it has one input"

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """One Add less than there are inputs, in the order of the inputs."""
        total = node.inputs[0]
        chain: list[ir.Node] = []
        for value in node.inputs[1:]:
            last = len(chain) == len(node.inputs) - 2
            add = editor.node("Add", [total, value], name=str(node.name), keep_name=last)
            total = add.outputs[0]
            chain.append(add)
        editor.replace(node, chain)
