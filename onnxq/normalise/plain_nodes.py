"""Nodes written with others that have gradients and integer kernels: Sum, Split, Where."""

from __future__ import annotations

from itertools import accumulate
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.graph.editor import Editor
from onnxq.graph.facts import constant, input_at, is_constant, is_used, static_dim
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


class SplitToSlices(NodePass):
    """Replaces a Split with unused outputs by one Slice per used output."""

    op_types: ClassVar[frozenset[str]] = frozenset({"Split"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the Split stays; None where it is replaced."""
        if all(is_used(output) for output in node.outputs):
            return "all its outputs are used"
        if split_sizes(node) is None:
            return "the sizes of its parts are not known"
        return None

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """One Slice per used output."""
        sizes = split_sizes(node)
        assert sizes is not None
        axis = node.attributes.get_int("axis", 0)
        ends = list(accumulate(sizes))
        axes = editor.initializer(f"{node.name}_axes", np.array([axis]))
        for output, size, end in zip(node.outputs, sizes, ends, strict=True):
            if not is_used(output):
                continue
            starts = editor.initializer(f"{node.name}_starts", np.array([end - size]))
            stops = editor.initializer(f"{node.name}_ends", np.array([end]))
            part = editor.node(
                "Slice", [node.inputs[0], starts, stops, axes], name=f"{node.name}_slice"
            )
            editor.graph.insert_before(node, part)
            editor.take_over(output, part.outputs[0])
        editor.remove([node])


def split_sizes(node: ir.Node) -> list[int] | None:
    """The sizes of a Split's outputs along its axis, `(len(outputs),)`; None if not known."""
    sizes = input_at(node, 1)
    if sizes is not None:
        array = constant(sizes)
        return None if array is None else [int(size) for size in array]
    total = static_dim(node.inputs[0], node.attributes.get_int("axis", 0))
    if total is None:
        return None
    count = len(node.outputs)
    size = -(-total // count)  # the last part is the smaller one
    return [size] * (count - 1) + [total - size * (count - 1)]


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
