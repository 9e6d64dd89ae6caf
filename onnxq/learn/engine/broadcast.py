"""Sums that undo numpy-style broadcasting."""

from __future__ import annotations

from onnxq.learn.engine.definition import Definition
from onnxq.learn.engine.form import Form


def broadcast_axes(form: Form, index: int) -> list[int] | None:
    """Axes of the output along which an input was repeated; None where shapes don't tell.

    A free dimension stands for itself: two that carry one name are equal.
    """
    operand = form.dimensions(form.node.inputs[index])
    output = form.dimensions(form.node.outputs[0])
    if operand is None or output is None or len(operand) > len(output):
        return None
    missing = len(output) - len(operand)
    axes = list(range(missing))
    for axis, dimension in enumerate(operand, start=missing):
        if dimension == output[axis]:
            continue
        if dimension != 1:
            return None
        axes.append(axis)
    return axes


def unbroadcast(form: Form, definition: Definition, gradient: str, index: int) -> str:
    """A gradient in the output's shape, summed to the shape of an input."""
    axes = broadcast_axes(form, index)
    assert axes is not None
    if not axes:
        return gradient
    summed = definition.reduce("ReduceSum", gradient, axes, keepdims=1)
    return definition.op("Reshape", summed, definition.op("Shape", definition.input(index)))


def unknown_broadcast(form: Form) -> str | None:
    """Why gradients can't be summed to the shapes of the inputs."""
    if any(broadcast_axes(form, index) is None for index in form.wanted):
        return "the shapes that it broadcasts are not known"
    return None
