"""Pooling: means over height and width become pools, which come before a last 1x1 convolution."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxq.graph.editor import Editor
from onnxq.graph.facts import (
    axes_of,
    input_at,
    is_op,
    only_reader,
    rank,
)
from onnxq.graph.scaled_weight import weight_array
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
        if node.attributes.get_int("keepdims", 1):
            editor.replace(node, [pool])
            return
        assert source is not None and source.shape is not None
        pool.outputs[0].type = source.type
        pool.outputs[0].shape = ir.Shape([*list(source.shape)[:2], 1, 1])
        flatten = editor.node(
            "Flatten", [pool.outputs[0]], {"axis": 1}, name=f"{node.name}_flatten"
        )
        editor.replace(node, [pool, flatten])


class PoolBeforeConv(NodePass):
    """Turns Conv 1×1 → GlobalAveragePool into GlobalAveragePool → Conv 1×1.

    Both are linear and the convolution looks at one position at a time, so that
    mean(W·x + b) = W·mean(x) + b; the pooled form costs H·W times less.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"GlobalAveragePool"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the pool stays where it is; None where it moves."""
        source = node.inputs[0]
        assert source is not None
        conv = source.producer()
        if conv is None or not is_pointwise(conv):
            return "it does not follow a 1×1 convolution"
        if only_reader(source) is not node:
            return f"the output of '{conv.name}' is used elsewhere too"
        return None

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """The pool first; both keep their names."""
        source = node.inputs[0]
        assert source is not None
        conv = source.producer()
        assert conv is not None and conv.inputs[0] is not None
        features = conv.inputs[0]
        pool = editor.node("GlobalAveragePool", [features], name=str(node.name), keep_name=True)
        pool.outputs[0].type = features.type
        if features.shape is not None:
            spatial = [1] * (len(features.shape) - 2)
            pool.outputs[0].shape = ir.Shape([*list(features.shape)[:2], *spatial])
        moved = editor.node(
            "Conv",
            [pool.outputs[0], *conv.inputs[1:]],
            {"group": conv.attributes.get_int("group", 1)},
            name=str(conv.name),
            keep_name=True,
        )
        editor.replace(node, [pool, moved])
        editor.remove([conv])


def is_pointwise(node: ir.Node) -> bool:
    """Whether the node is a convolution of kernel 1 with constant weights, no pads, stride 1."""
    if not is_op(node, "Conv") or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return False
    weight = weight_array(input_at(node, 1))
    return (
        weight is not None
        and all(size == 1 for size in weight.shape[2:])
        and not any(node.attributes.get_ints("pads") or ())
        and all(stride == 1 for stride in node.attributes.get_ints("strides") or ())
    )
