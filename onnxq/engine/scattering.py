"""Sums of elements at given places of a vector."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.engine.builder import Builder


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
