"""Split with an output that nobody reads: its gradient would be wrong."""

from __future__ import annotations

from itertools import accumulate
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import constant, input_at, int_attribute, is_used, static_dim
from onnxq.normalise.passes import NodePass


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
        axis = int_attribute(node, "axis", 0)
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
    total = static_dim(node.inputs[0], int_attribute(node, "axis", 0))
    if total is None:
        return None
    count = len(node.outputs)
    size = -(-total // count)  # the last part is the smaller one
    return [size] * (count - 1) + [total - size * (count - 1)]
