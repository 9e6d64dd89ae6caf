"""Nodes in plainer forms, which have gradients and integer kernels.

Sum, Split and Where are written with other operators. Bounds and activations become Clip, Relu and
LeakyRelu.
"""

from __future__ import annotations

from itertools import accumulate
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.graph.editor import Editor
from onnxq.graph.facts import (
    constant,
    input_at,
    is_constant,
    is_op,
    is_used,
    only_reader,
    producer,
    rank,
    scalar,
    static_dim,
)
from onnxq.normalise.passes import NodePass


class ChainSum(NodePass):
    """Replaces `Sum(a, b, c)` by `Add(Add(a, b), c)`."""

    op_types: ClassVar[frozenset[str]] = frozenset({"Sum"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the Sum stays; None where it is replaced."""
        return None if len(node.inputs) > 1 else "it has one input"

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """A chain of Adds, in the order of the inputs."""
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
    """Makes the broadcast of a Where's computed branches an explicit Expand.

    `Where(c, x, y)` with x smaller than the result becomes `Where(c, Expand(x, Shape(full)), y)`,
    where `full` is an input of the Where that has the result's shape. A constant branch needs no
    gradient and stays.
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


class ClipToRelu(NodePass):
    """Replaces `Clip(x, 0)` and `Clip(x, 0, m)` with an m that no float exceeds by Relu."""

    op_types: ClassVar[frozenset[str]] = frozenset({"Clip"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the Clip stays; None where it is a Relu."""
        low, high = constant(input_at(node, 1)), input_at(node, 2)
        if low is None or low.size != 1 or not np.issubdtype(low.dtype, np.floating):
            return "its lower limit is no constant float"
        if float(low.reshape(())) != 0.0:
            return "its lower limit is not zero"
        if high is None:
            return None
        limit = constant(high)
        if limit is None or limit.size != 1:
            return "its upper limit is not constant"
        if limit.reshape(())[()] < np.finfo(limit.dtype).max:
            return "it has an upper limit"
        return None

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """A Relu of the same name."""
        relu = editor.node("Relu", [node.inputs[0]], name=str(node.name), keep_name=True)
        editor.replace(node, [relu])


class MinMaxToClip(NodePass):
    """Joins Max, Min, Relu and Clip by constant scalars into one Clip.

    `Max(x, a)` is `Clip(x, a)` and `Min(x, b)` is `Clip(x, , b)`. A Clip that is the only reader of
    another Clip or of a Relu takes over its limits: with a ≤ b and c ≤ d, clip(clip(x, a, b), c, d)
    = clip(x, clip(a, c, d), clip(b, c, d)).
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Min", "Max", "Clip"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the node stays; None where it becomes a Clip or joins the one before it."""
        limits = _limits(node)
        if limits is None:
            return "its limits are not constant float scalars"
        if limits[0] > limits[1]:
            return "its limits are the wrong way round"
        if node.op_type != "Clip":
            return None
        return None if _joined(node) is not None else "it is a Clip of its own already"

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """One Clip under the node's name."""
        joined = _joined(node)
        source, limits = joined if joined is not None else (_source(node), _limits(node))
        assert source is not None and limits is not None and source.dtype is not None
        dtype = source.dtype.numpy()
        low, high = (
            editor.initializer(f"{node.name}_{part}", np.array(limit, dtype=dtype))
            if np.isfinite(limit)
            else None
            for part, limit in zip(("min", "max"), limits, strict=True)
        )
        inputs = [source, low] if high is None else [source, low, high]
        clip = editor.node("Clip", inputs, name=str(node.name), keep_name=True)
        before = _source(node)
        editor.replace(node, [clip])
        if before is not None and before is not source and (old := before.producer()) is not None:
            editor.remove([old])


def _source(node: ir.Node) -> ir.Value | None:
    if node.op_type in ("Clip", "Relu"):
        return node.inputs[0]
    return next((value for value in node.inputs if constant(value) is None), None)


def _limits(node: ir.Node) -> tuple[float, float] | None:
    """The lowest and the highest value of the output, infinite where there is no limit."""
    source = _source(node)
    if source is None or source.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return None
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type == "Clip":
        low = scalar(input_at(node, 1), -np.inf)
        high = scalar(input_at(node, 2), np.inf)
        return None if low is None or high is None else (low, high)
    others = [value for value in node.inputs if value is not source]
    if len(node.inputs) != 2 or len(others) != 1 or not rank(source):
        return None
    limit = scalar(others[0], np.nan)
    if limit is None or np.isnan(limit):
        return None
    return (limit, np.inf) if node.op_type == "Max" else (-np.inf, limit)


def _joined(node: ir.Node) -> tuple[ir.Value, tuple[float, float]] | None:
    """The input that the node and the one before it clip together, and the joint limits."""
    value, outer = _source(node), _limits(node)
    before = producer(value)
    if value is None or outer is None or before is None or only_reader(value) is not node:
        return None
    if not is_op(before, "Clip", "Relu"):
        return None
    source, inner = _source(before), _limits(before)
    if source is None or inner is None or inner[0] > inner[1]:
        return None
    low, high = (min(max(limit, outer[0]), outer[1]) for limit in inner)
    return source, (low, high)


class PReluToLeakyRelu(NodePass):
    """Replaces PRelu whose constant slopes are all equal by LeakyRelu."""

    op_types: ClassVar[frozenset[str]] = frozenset({"PRelu"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the PRelu stays; None where it is replaced."""
        slope = constant(node.inputs[1])
        if slope is None or not slope.size:
            return "its slopes are not constant"
        if (slope != slope.reshape(-1)[0]).any():
            return "its slopes differ"
        if slope.ndim > 1 and slope.ndim > (rank(node.inputs[0]) or 0):
            return "its slopes may broadcast the input"
        return None

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """A LeakyRelu of the same name."""
        slope = constant(node.inputs[1])
        assert slope is not None
        leaky = editor.node(
            "LeakyRelu",
            [node.inputs[0]],
            {"alpha": float(slope.reshape(-1)[0])},
            name=str(node.name),
            keep_name=True,
        )
        editor.replace(node, [leaky])
