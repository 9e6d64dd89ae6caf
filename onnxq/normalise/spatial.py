"""Explicit padding, means as pools, and pools before a last 1×1 convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.graph.editor import Editor
from onnxq.graph.facts import (
    axes_of,
    constant,
    input_at,
    is_op,
    only_reader,
    rank,
    static_dim,
)
from onnxq.graph.scaled_weight import weight_array
from onnxq.normalise.passes import NodePass


class MakePadsExplicit(NodePass):
    """Replaces `auto_pad` by `pads`, as the ONNX operators define it.

    SAME: out = ceil(in / stride), so that for a convolution or a pool
    total = max((out - 1)·stride + (kernel - 1)·dilation + 1 - in, 0), and for a transposed
    convolution (out = in·stride)
    total = output_padding + (kernel - 1)·dilation + 1 - stride.
    SAME_UPPER puts the odd one at the end, SAME_LOWER at the beginning.
    """

    op_types: ClassVar[frozenset[str]] = frozenset(
        {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"}
    )

    def refusal(self, node: ir.Node) -> str | None:
        """Why the node stays; None where its pads are written out."""
        mode = node.attributes.get_string("auto_pad", "NOTSET")
        if mode == "NOTSET":
            return "its pads are explicit"
        if mode not in ("VALID", "SAME_UPPER", "SAME_LOWER"):
            return f"its auto_pad '{mode}' is not known"
        if _kernel(node) is None:
            return "the size of its kernel is not known"
        if "output_shape" in node.attributes:
            return "it has an output_shape"
        if mode != "VALID" and _totals(node) is None:
            return "the size of its input is not known, or its stride skips part of it"
        return None

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """Set `pads`, drop `auto_pad`."""
        mode = node.attributes.get_string("auto_pad", "NOTSET")
        kernel = _kernel(node)
        assert kernel is not None
        totals = [0] * len(kernel) if mode == "VALID" else _totals(node)
        assert totals is not None
        small = [total // 2 for total in totals]
        large = [total - half for total, half in zip(totals, small, strict=True)]
        begin, end = (large, small) if mode == "SAME_LOWER" else (small, large)
        del node.attributes["auto_pad"]
        node.attributes["pads"] = ir.AttrInt64s("pads", [*begin, *end])


def _kernel(node: ir.Node) -> Sequence[int] | None:
    kernel = node.attributes.get_ints("kernel_shape")
    if kernel is not None or node.op_type not in ("Conv", "ConvTranspose"):
        return kernel
    weight = input_at(node, 1)
    sizes = [static_dim(weight, axis) for axis in range(2, rank(weight) or 2)]
    known = tuple(size for size in sizes if size is not None)
    return known if known and len(known) == len(sizes) else None


def _totals(node: ir.Node) -> list[int] | None:
    kernel = _kernel(node) or ()
    ones = (1,) * len(kernel)
    strides = node.attributes.get_ints("strides") or ones
    dilations = node.attributes.get_ints("dilations") or ones
    extras = node.attributes.get_ints("output_padding") or (0,) * len(kernel)
    totals: list[int] = []
    for axis, (size, stride, dilation, extra) in enumerate(
        zip(kernel, strides, dilations, extras, strict=True)
    ):
        reach = (size - 1) * dilation + 1
        total: int | None
        if node.op_type == "ConvTranspose":
            total = extra + reach - stride
        else:
            total = _total(reach, stride, static_dim(node.inputs[0], axis + 2))
        if total is None or total < 0:
            return None
        totals.append(total)
    return totals


def _total(reach: int, stride: int, size: int | None) -> int | None:
    if stride == 1:
        return reach - 1  # whatever the size
    if size is None:
        return None
    total = (-(-size // stride) - 1) * stride + reach - size
    # With stride > kernel it may be negative: ONNX says 0, ONNX Runtime skips the first of
    # two or more surplus elements, and one surplus element is the last one for both.
    return 0 if total == -1 else total


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
        """Why the pool stays in its place; None where it is moved."""
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
