"""Pad of some axes written out as Pad of all."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import constant, input_at, rank
from onnxq.normalise.passes import NodePass

_AXES = 3
"""The place of the input that opset 18 brought."""


class FullPads(NodePass):
    """Replaces Pad with `axes` by Pad with zeros for the other axes.

    ONNX Runtime 1.19.2 reads the axes wrongly where it moves a Transpose across an integer Pad.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Pad"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the Pad stays; None where its pads are written out."""
        if input_at(node, _AXES) is None:
            return "it pads all axes"
        if constant(input_at(node, _AXES)) is None or constant(input_at(node, 1)) is None:
            return "its pads are not constant"
        return None if rank(node.inputs[0]) else "the rank of its input is not known"

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """Pads for each axis, without `axes`."""
        axes, pads = constant(input_at(node, _AXES)), constant(input_at(node, 1))
        size = rank(node.inputs[0])
        assert axes is not None and pads is not None and size is not None
        full = np.zeros((2, size), np.int64)
        full[:, axes.reshape(-1)] = pads.reshape(2, -1)
        node.replace_input_with(1, editor.initializer(f"{node.name}_pads", full.reshape(-1)))
        node.resize_inputs(_AXES)
