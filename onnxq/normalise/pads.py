"""Padding: `auto_pad` made explicit, and a Pad with its bounds in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.graph.editor import Editor
from onnxq.graph.facts import (
    constant,
    input_at,
    rank,
    static_dim,
)
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
