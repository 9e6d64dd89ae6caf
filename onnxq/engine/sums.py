"""Sums in a backward pass: over broadcast axes, and of elements at given places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxq.engine.builder import Builder


def broadcast_axes(operand: ir.Value, output: ir.Value) -> list[int] | None:
    """Axes of the output along which an operand was repeated; None where shapes don't tell.

    A free dimension stands for itself: two that carry one name are equal.
    """
    if operand.shape is None or output.shape is None or len(operand.shape) > len(output.shape):
        return None
    missing = len(output.shape) - len(operand.shape)
    axes = list(range(missing))
    for axis, dimension in enumerate(operand.shape, start=missing):
        if same_dimensions([dimension], [output.shape[axis]]):
            continue
        if dimension != 1:
            return None
        axes.append(axis)
    return axes


def same_dimensions(
    left: Sequence[int | ir.SymbolicDim], right: Sequence[int | ir.SymbolicDim]
) -> bool:
    """Whether sizes are known to be equal: the same numbers, or the same names."""
    return len(left) == len(right) and all(
        one == other and (isinstance(one, int) or one.value is not None)
        for one, other in zip(left, right, strict=True)
    )


def unbroadcast(b: Builder, gradient: ir.Value, operand: ir.Value, output: ir.Value) -> ir.Value:
    """A gradient in the output's shape, summed to the shape of an operand."""
    axes = broadcast_axes(operand, output)
    if axes == []:
        return gradient
    if axes is None:
        return _unbroadcast_at_run_time(b, gradient, operand)
    summed = b.reduce("ReduceSum", gradient, axes, keepdims=1)
    return b.reshape_like(summed, operand)


def _unbroadcast_at_run_time(b: Builder, gradient: ir.Value, operand: ir.Value) -> ir.Value:
    """The same where shapes are known at run time only: every axis of size 1 is summed."""
    shape = b.op("Shape", operand)
    missing = b.op("Sub", b.op("Shape", b.op("Shape", gradient)), b.op("Shape", shape))
    ones = b.op("Expand", [1], missing)
    aligned = b.op("Concat", ones, shape, axis=0)
    axes = b.op("Reshape", b.op("NonZero", b.op("Equal", aligned, [1])), [-1])
    summed = b.op("ReduceSum", gradient, axes, keepdims=1, noop_with_empty_axes=1)
    return b.op("Reshape", summed, shape)


def scatter(b: Builder, zeros: ir.Value, places: ir.Value, values: ir.Value) -> ir.Value:
    """The vector ``zeros`` with the values at their places, each of which is named once."""
    return b.op("ScatterElements", zeros, places, values, axis=0)


def scatter_add(b: Builder, zeros: ir.Value, places: ir.Value, values: ir.Value) -> ir.Value:
    """The same where a place may be named again: its values are added up.

    Args:
        b: writes the nodes.
        zeros: (elements,) zeros.
        places: (values,) int64.
        values: (values,).
    """
    if b.opset >= 16:
        return b.op("ScatterElements", zeros, places, values, axis=0, reduction="add")
    return _scatter_sorted(b, zeros, places, values)


def _scatter_sorted(b: Builder, zeros: ir.Value, places: ir.Value, values: ir.Value) -> ir.Value:
    """Before opset 16: differences of the running sum over the values in order of place."""
    count = b.op("Shape", places)
    present, attributes = [True, True], {"largest": 0, "sorted": 1}
    ordered, order = b.ops(present, "TopK", places, count, attributes=attributes)
    wide = b.op("Cast", b.op("Gather", values, order), to=int(ir.DataType.DOUBLE))
    running = b.op("CumSum", wide, b.array(np.int64(0)))
    following = b.op("Concat", b.op("Slice", ordered, [1], [2**62]), [-1], axis=0)
    last = b.op("Not", b.op("Equal", ordered, following))
    sums = b.op("Compress", running, last, axis=0)
    before = b.op("Slice", b.op("Concat", b.array(np.zeros(1)), sums, axis=0), [0], [-1])
    own = b.cast(b.op("Sub", sums, before))
    return scatter(b, zeros, b.op("Compress", ordered, last, axis=0), own)
