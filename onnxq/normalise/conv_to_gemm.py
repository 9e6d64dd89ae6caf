"""A 1×1 convolution of a 1×1 image whose result is flattened is a Gemm."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.graph.scaled_weight import shares
from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import (
    axes_of,
    constant,
    input_at,
    int_attribute,
    is_op,
    only_reader,
    rank,
    static_dim,
)
from onnxq.normalise.passes import NodePass
from onnxq.normalise.pool_before_conv import is_pointwise


class ConvToGemm(NodePass):
    """Replaces Conv 1×1 on `(N, C, 1, 1)` at the head of a classifier by Flatten → Gemm.

    Applies where the result is flattened to `(N, K)`, and where the graph returns it, in
    which case Unsqueeze puts the two dimensions back. Gemm's integer kernel gives float
    outputs, so that logits stay float.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Conv"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the convolution stays; None where it becomes a Gemm."""
        if not is_pointwise(node) or int_attribute(node, "group", 1) != 1:
            return "it is not a plain 1×1 convolution"
        source, target = node.inputs[0], node.outputs[0]
        if node.inputs[1] is not None and shares(node.inputs[1]):
            return "its weight is shared, and a matrix would be a copy of it"
        if rank(source) != 4 or static_dim(source, 2) != 1 or static_dim(source, 3) != 1:
            return "its input is not known to be 1×1"
        if target.is_graph_output():
            return "its output is read inside the graph too" if target.uses() else None
        reader = only_reader(target)
        if reader is None or not _flattens(reader, target):
            return "its output is not flattened"
        return None

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """Flatten → Gemm (→ Unsqueeze); the Gemm keeps the convolution's name."""
        flatten = editor.node("Flatten", [node.inputs[0]], {"axis": 1}, name=f"{node.name}_flatten")
        gemm = editor.node(
            "Gemm",
            [flatten.outputs[0], _matrix(editor, node), *node.inputs[2:]],
            {"transB": 1},
            name=str(node.name),
            keep_name=True,
        )
        _set_shapes(node, flatten, gemm)
        if node.outputs[0].is_graph_output():
            axes = editor.initializer(f"{node.name}_axes", np.array([2, 3]))
            last = editor.node("Unsqueeze", [gemm.outputs[0], axes], name=f"{node.name}_unsqueeze")
            editor.replace(node, [flatten, gemm, last])
            return
        reader = only_reader(node.outputs[0])
        assert reader is not None
        editor.replace(reader, [flatten, gemm])
        editor.remove([node])


def _matrix(editor: Editor, node: ir.Node) -> ir.Value:
    weight = constant(node.inputs[1])
    assert weight is not None
    return editor.initializer(f"{node.name}_weight", weight.reshape(weight.shape[:2]))


def _set_shapes(node: ir.Node, flatten: ir.Node, gemm: ir.Node) -> None:
    source, weight = node.inputs[0], constant(node.inputs[1])
    assert source is not None and source.shape is not None and weight is not None
    batch = source.shape[0]
    for made, size in ((flatten, weight.shape[1]), (gemm, weight.shape[0])):
        made.outputs[0].type = source.type
        made.outputs[0].shape = ir.Shape([batch, int(size)])


def _flattens(reader: ir.Node, value: ir.Value) -> bool:
    """Whether the reader turns `(N, K, 1, 1)` into `(N, K)`."""
    if is_op(reader, "Flatten"):
        return int_attribute(reader, "axis", 1) == 1
    if is_op(reader, "Squeeze"):
        return axes_of(reader, 4) == (2, 3)
    if not is_op(reader, "Reshape") or reader.inputs[0] is not value:
        return False
    shape = constant(input_at(reader, 1))
    channels = static_dim(value, 1)
    if shape is None or shape.size != 2 or channels is None:
        return False
    first, second = (int(size) for size in shape)
    if first == 0 and int_attribute(reader, "allowzero", 0):
        return False
    return (second == channels) or (second == -1 and first in (0, static_dim(value, 0)))
