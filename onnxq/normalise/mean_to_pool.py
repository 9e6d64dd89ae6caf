"""The mean over height and width is GlobalAveragePool, which has an integer kernel."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import axes_of, int_attribute, rank
from onnxq.normalise.passes import NodePass


class MeanToPool(NodePass):
    """Replaces ReduceMean over axes 2 and 3 of `(N, C, H, W)` by GlobalAveragePool.

    Without `keepdims` a Flatten to `(N, C)` follows.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"ReduceMean"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the ReduceMean stays; None where it is a pool."""
        if rank(node.inputs[0]) != 4:
            return "its input is not known to have 4 dimensions"
        if axes_of(node, 4) != (2, 3):
            return "it does not reduce height and width"
        return None

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """GlobalAveragePool, and Flatten where the dimensions are dropped."""
        source = node.inputs[0]
        pool = editor.node("GlobalAveragePool", [source], name=str(node.name), keep_name=True)
        if int_attribute(node, "keepdims", 1):
            editor.replace(node, [pool])
            return
        assert source is not None and source.shape is not None
        pool.outputs[0].type = source.type
        pool.outputs[0].shape = ir.Shape([*list(source.shape)[:2], 1, 1])
        flatten = editor.node(
            "Flatten", [pool.outputs[0]], {"axis": 1}, name=f"{node.name}_flatten"
        )
        editor.replace(node, [pool, flatten])
