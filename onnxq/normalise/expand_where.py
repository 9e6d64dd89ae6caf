"""Where with broadcasting branches: its gradient would be wrong."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import is_constant
from onnxq.normalise.passes import NodePass


class ExpandWhere(NodePass):
    """Makes the broadcast of a Where's computed branches an Expand of its own.

    `Where(c, x, y)` with x smaller than the result becomes
    `Where(c, Expand(x, Shape(full)), y)`, `full` being an input of the Where that has the
    result's shape. A constant branch needs no gradient and stays.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Where"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the Where stays; None where a branch is expanded."""
        if any(value is None or value.shape is None for value in [*node.inputs, *node.outputs]):
            return "its shapes are not known"
        if not _broadcast(node):
            return "no computed branch is broadcast"
        if _full(node) is None:
            return "no input has the shape of the result"
        return None

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """An Expand before each computed branch that is broadcast."""
        shape = editor.node("Shape", [_full(node)], name=f"{node.name}_shape")
        editor.graph.insert_before(node, shape)
        for index in _broadcast(node):
            branch = node.inputs[index]
            assert branch is not None
            expand = editor.node("Expand", [branch, shape.outputs[0]], name=f"{node.name}_expand")
            expand.outputs[0].type = branch.type
            expand.outputs[0].shape = node.outputs[0].shape
            editor.graph.insert_before(node, expand)
            node.replace_input_with(index, expand.outputs[0])


def _broadcast(node: ir.Node) -> list[int]:
    return [
        index
        for index in (1, 2)
        if not is_constant(node.inputs[index]) and not _same_shape(node, node.inputs[index])
    ]


def _full(node: ir.Node) -> ir.Value | None:
    return next((value for value in node.inputs if _same_shape(node, value)), None)


def _same_shape(node: ir.Node, value: ir.Value | None) -> bool:
    result = node.outputs[0].shape
    assert result is not None
    if value is None or value.shape is None or len(value.shape) != len(result):
        return False
    pairs = zip(value.shape, result, strict=True)
    return all(a == b and not _unknown(a) for a, b in pairs)


def _unknown(dim: int | ir.SymbolicDim) -> bool:
    return not isinstance(dim, int) and dim.value is None
