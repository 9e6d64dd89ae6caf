"""A 1×1 convolution and a mean over height and width change places."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import (
    constant,
    input_at,
    int_attribute,
    ints_attribute,
    is_op,
    only_reader,
    string_attribute,
)
from onnxq.normalise.passes import NodePass


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
            {"group": int_attribute(conv, "group", 1)},
            name=str(conv.name),
            keep_name=True,
        )
        editor.replace(node, [pool, moved])
        editor.remove([conv])


def is_pointwise(node: ir.Node) -> bool:
    """Whether the node is a convolution of kernel 1 with constant weights, no pads, stride 1."""
    if not is_op(node, "Conv") or string_attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return False
    weight = constant(input_at(node, 1))
    return (
        weight is not None
        and all(size == 1 for size in weight.shape[2:])
        and not any(ints_attribute(node, "pads") or ())
        and all(stride == 1 for stride in ints_attribute(node, "strides") or ())
    )
