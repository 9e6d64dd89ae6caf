"""A model exported for one batch size made to take any."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import constant, input_at, int_attribute, is_op, static_dim
from onnxq.normalise.passes import PassResult
from onnxq.normalise.reach import moved_by_inputs

BATCH = "N"
"""The name of the dimension that is made free."""


class FreeBatch:
    """Makes the fixed first dimension of all inputs and outputs a symbol.

    Reshape to a constant shape that starts with the fixed batch takes it from its input
    instead. Whether the result computes each sample by itself is for the caller to check:
    shapes alone do not tell.

    Args:
        size: the batch that the graph was written for, where its inputs don't say so; by
            default that of the inputs.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def __call__(self, model: ir.Model) -> PassResult:
        """The model and whether anything was freed."""
        size = self.size or fixed_batch(model)
        if size is None:
            return PassResult(model, modified=False)
        editor = Editor(model.graph)
        nodes = [node for node in model.graph if is_op(node, "Reshape")]
        freed = [_free_reshape(editor, node, size) for node in nodes]
        values = [*model.graph.inputs, *batch_outputs(model)]
        freed += [_free_value(value, size) for value in values]
        if any(freed):
            _forget_shapes(model)
        return PassResult(model, any(freed))


def fixed_batch(model: ir.Model) -> int | None:
    """The first dimension that all inputs and outputs share, if it is a fixed number.

    Outputs that depend on no sample have none.
    """
    values = [*model.graph.inputs, *batch_outputs(model)]
    sizes = {static_dim(value, 0) for value in values}
    size = next(iter(sizes)) if len(sizes) == 1 else None
    return size if size is not None and size > 0 else None


def batch_outputs(model: ir.Model) -> list[ir.Value]:
    """The outputs that depend on the samples; a table of anchors has no batch."""
    moved = moved_by_inputs(model.graph)
    return [value for value in model.graph.outputs if value in moved]


def fix_batch(model: ir.Model, size: int) -> None:
    """Declare the free first dimension of all inputs fixed, in place; nothing inside changes."""
    for value in model.graph.inputs:
        if value.shape and not static_batch(value):
            value.shape = ir.Shape([size, *list(value.shape)[1:]])


def has_free_batch(model: ir.Model) -> bool:
    """Whether the first dimension of all inputs is declared free."""
    return all(
        value.shape is not None and len(value.shape) > 0 and not static_batch(value)
        for value in model.graph.inputs
    )


def static_batch(value: ir.Value) -> bool:
    """Whether the first dimension is a number above 0; some exporters write 0 for free."""
    size = static_dim(value, 0)
    return size is not None and size > 0


def _free_reshape(editor: Editor, node: ir.Node, size: int) -> bool:
    shape = constant(input_at(node, 1))
    if shape is None or shape.ndim != 1 or shape.size == 0 or shape[0] != size:
        return False
    if constant(node.inputs[0]) is not None or int_attribute(node, "allowzero", 0):
        return False
    free = shape.copy()
    free[0] = 0 if static_dim(node.inputs[0], 0) == size or -1 in shape else -1
    node.replace_input_with(1, editor.initializer(f"{node.name}_shape", free.astype(np.int64)))
    return True


def _free_value(value: ir.Value, size: int) -> bool:
    if value.shape is None or static_dim(value, 0) != size:
        return False
    value.shape = ir.Shape([BATCH, *list(value.shape)[1:]])
    return True


def _forget_shapes(model: ir.Model) -> None:
    outputs = set(model.graph.outputs)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value not in outputs:
                value.shape = None
