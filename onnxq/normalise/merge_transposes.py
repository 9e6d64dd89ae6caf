"""Two Transposes in a row are one, or none."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import ints_attribute, is_op, rank
from onnxq.normalise.passes import NodePass


class MergeTransposes(NodePass):
    """Replaces `Transpose(Transpose(x))` by one Transpose of x, or by x."""

    op_types: ClassVar[frozenset[str]] = frozenset({"Transpose"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the Transpose stays; None where it is merged with the one before."""
        source = node.inputs[0]
        first = None if source is None else source.producer()
        if first is None or not is_op(first, "Transpose"):
            return "it does not follow a Transpose"
        if _perm(first) is None or _perm(node) is None:
            return "its rank is not known"
        if _is_identity(_merged(first, node)) and node.outputs[0].is_graph_output():
            return "the graph returns what it gives"
        return None

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """One Transpose with the name of the second; readers of the first keep it."""
        assert node.inputs[0] is not None
        first = node.inputs[0].producer()
        assert first is not None and first.inputs[0] is not None
        perm = _merged(first, node)
        if _is_identity(perm):
            node.outputs[0].replace_all_uses_with(first.inputs[0])
            editor.remove([first, node])
            return
        name = str(node.name)
        merged = editor.node(
            "Transpose", [first.inputs[0]], {"perm": perm}, name=name, keep_name=True
        )
        editor.replace(node, [merged])
        editor.remove([first])


def _perm(node: ir.Node) -> list[int] | None:
    found, count = ints_attribute(node, "perm"), rank(node.inputs[0])
    if found is not None:
        return list(found)
    return None if count is None else list(reversed(range(count)))


def _merged(first: ir.Node, second: ir.Node) -> list[int]:
    inner, outer = _perm(first), _perm(second)
    assert inner is not None and outer is not None
    return [inner[axis] for axis in outer]


def _is_identity(perm: list[int]) -> bool:
    return perm == list(range(len(perm)))
