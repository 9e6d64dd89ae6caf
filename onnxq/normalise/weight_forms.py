"""A constant weight in the arrangement that another form of its layer reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import constant


def rearranged(
    editor: Editor, value: ir.Value, perm: Sequence[int], shape: Sequence[int]
) -> ir.Value:
    """The constant, transposed and reshaped; the same one for every reader that asks for it.

    Args:
        editor: of the graph that the constant is in.
        value: a constant; it stays as it is.
        perm: its axes in their new order.
        shape: the shape after that.
    """
    array = constant(value)
    assert array is not None
    if tuple(perm) == tuple(range(array.ndim)) and tuple(shape) == array.shape:
        return value
    key = f"arranged {tuple(perm)} {tuple(shape)}"
    known = value.meta.get(key)
    if isinstance(known, ir.Value) and known.graph is editor.graph:
        return known
    made = editor.initializer(str(value.name), np.transpose(array, perm).reshape(shape))
    value.meta[key] = made
    return made
