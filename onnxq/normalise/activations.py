"""Activation functions in the forms that integer kernels have: Clip, Relu, LeakyRelu."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.graph.editor import Editor
from onnxq.graph.facts import constant, input_at, is_op, only_reader, producer, rank, scalar
from onnxq.normalise.passes import NodePass


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
    """Gathers Max, Min, Relu and Clip by constant scalars into one Clip.

    `Max(x, a)` is `Clip(x, a)` and `Min(x, b)` is `Clip(x, , b)`. A Clip that is the only
    reader of another Clip or of a Relu takes over its limits: with a ≤ b and c ≤ d,
    clip(clip(x, a, b), c, d) = clip(x, clip(a, c, d), clip(b, c, d)).
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
    """What the node and the one before it clip together, and to which limits."""
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
