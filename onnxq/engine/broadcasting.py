"""The sums that undo broadcasting."""

from __future__ import annotations

from collections.abc import Sequence

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
