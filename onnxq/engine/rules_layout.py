"""Gradients of operators that choose, repeat or rearrange elements; G = dL/dy.

Most of them choose: each element of y is one element of x, or a constant. Run on the
positions 0, 1, 2, ... of the elements of x in place of x, such an operator tells which; and
dx collects G there (``_chosen``).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.engine.builder import Attribute, Builder
from onnxq.engine.form import Form, Gradients, Rule, sizes, unknown_rank
from onnxq.engine.kernels import MICROSOFT
from onnxq.engine.sums import scatter, scatter_add


def _reshaped(form: Form, b: Builder) -> Gradients:
    return {0: b.reshape_like(b.gradient(), b.input())}


def _transpose(form: Form, b: Builder) -> Gradients:
    order = form.integers("perm", [])
    inverse = {"perm": sorted(range(len(order)), key=order.__getitem__)} if order else {}
    return {0: b.op("Transpose", b.gradient(), attributes=inverse)}


def _concat(form: Form, b: Builder) -> Gradients:
    """Each input takes its part of G."""
    axis = form.integer("axis", 0)
    parts = [_size(b, b.input(i), axis) for i in range(len(form.node.inputs))]
    lengths = b.op("Concat", *parts, axis=0)
    present = [True] * len(parts)
    found = b.ops(present, "Split", b.gradient(), lengths, attributes={"axis": axis})
    return dict(enumerate(found))


def _size(b: Builder, x: ir.Value, axis: int) -> ir.Value:
    """The size along an axis, one element."""
    known = sizes(x)
    size = known[axis] if known else None
    return b.integers([size]) if size is not None else b.op("Gather", b.op("Shape", x), [axis])


def _split(form: Form, b: Builder) -> Gradients:
    """The gradients of all parts side by side; zeros for a part that nobody reads."""
    parts = [b.gradient(index) for index in range(len(form.node.outputs))]
    return {0: b.op("Concat", *parts, axis=form.integer("axis", 0))}


def _chosen(form: Form, b: Builder) -> Gradients:
    """Dx collects G at the positions that the operator chooses."""
    x, node = b.input(0), form.node
    count = b.op("Size", x)
    order = b.op("Range", b.array(np.int64(0)), count, b.array(np.int64(1)))
    others = list(node.inputs[1:])
    if node.op_type == "Pad":  # its constant is no position of x
        others[1:2] = [b.array(np.int64(-1))]
    places = b.op(node.op_type, b.reshape_like(order, x), *others, attributes=_given(node))
    flat = [b.op("Reshape", each, [-1]) for each in (places, b.gradient())]
    zeros = b.op("Expand", 0.0, b.op("Reshape", count, [1]))
    collect = scatter if node.op_type == "Slice" else scatter_add
    return {0: b.reshape_like(collect(b, zeros, *flat), x)}


def _given(node: ir.Node) -> dict[str, Attribute]:
    """A node's attributes in Python types."""
    return {name: each.value for name, each in node.attributes.items()}


def _slice(form: Form, b: Builder) -> Gradients:
    """Zeros around G where the slice is known and takes every element; else as any choice."""
    pads, steps = _slice_pads(form), form.constant(4)
    if pads is not None:
        return {0: b.op("Pad", b.gradient(), pads)}
    forward = not form.has(4) or (steps is not None and (steps > 0).all())
    if not forward or not b.training_kernels:
        return _chosen(form, b)
    inputs = (b.gradient(), b.op("Shape", b.input()), *form.node.inputs[1:])
    return {0: b.op("SliceGrad", *inputs, domain=MICROSOFT)}


def _slice_pads(form: Form) -> list[int] | None:
    starts, ends, axes, steps = (form.constant(index) for index in range(1, 5))
    rank, dims = form.rank(), form.dimensions()
    if starts is None or ends is None or rank is None or (form.has(3) and axes is None):
        return None
    if form.has(4) and (steps is None or (steps != 1).any()):
        return None
    pads = [0] * (2 * rank)
    for axis, start, end in zip(range(rank) if axes is None else axes, starts, ends, strict=False):
        size = dims[axis]
        if size is None:
            return None
        begin, end, _ = slice(int(start), int(end)).indices(size)
        pads[axis % rank], pads[axis % rank + rank] = begin, size - max(begin, end)
    return pads


def _pad(form: Form, b: Builder) -> Gradients:
    """The part of G that x became; where padding repeats x, G of the copies as well."""
    if form.text("mode", "constant") != "constant":
        return _chosen(form, b)
    axes = b.input(3) if form.has(3) else None
    half = b.op("Div", b.op("Shape", b.input(1)), [2])
    starts = b.op("Slice", b.input(1), [0], half)
    size = b.op("Shape", b.input())
    if axes is not None:
        size = b.op("Gather", size, axes)
    return {0: b.op("Slice", b.gradient(), starts, b.op("Add", starts, size), axes)}


def _refuse_pad(form: Form) -> str | None:
    pads = form.constant(1)
    if form.text("mode", "constant") != "constant":
        return None
    return "its pads are not known to be positive" if pads is None or (pads < 0).any() else None


def _tile(form: Form, b: Builder) -> Gradients:
    """The sum over the copies: G as (repeats, size, repeats, size, ...)."""
    rank = form.rank() or 0
    pairs = [b.op("Unsqueeze", each, [1]) for each in (b.input(1), b.op("Shape", b.input()))]
    shape = b.op("Reshape", b.op("Concat", *pairs, axis=1), [-1])
    copies = b.op("Reshape", b.gradient(), shape)
    return {0: b.reduce("ReduceSum", copies, range(0, 2 * rank, 2))}


def _top_k(form: Form, b: Builder) -> Gradients:
    zeros, axis = b.filled_like(b.input(), 0.0), form.integer("axis", -1)
    return {0: b.op("ScatterElements", zeros, b.output(1), b.gradient(), axis=axis)}


def _scatter(form: Form, b: Builder) -> Gradients:
    """The updates take the G of their places, the data that of all others."""
    updates = b.input(2)
    adds = form.text("reduction", "none") == "add"
    zeros, node = b.filled_like(updates, 0.0), form.node
    attributes = {} if node.op_type == "ScatterND" else {"axis": form.integer("axis", 0)}
    kept = b.op(node.op_type, b.gradient(), b.input(1), zeros, attributes=attributes)
    gather = {"ScatterElements": "GatherElements", "ScatterND": "GatherND"}[node.op_type]
    found = b.op(gather, b.gradient(), b.input(1), attributes=attributes)
    return {0: b.gradient() if adds else kept, 2: found}


def _refuse_scatter(form: Form) -> str | None:
    reduction = form.text("reduction", "none")
    return None if reduction in ("none", "add") else f"reduction '{reduction}' has no gradient"


def _trilu(form: Form, b: Builder) -> Gradients:
    others = form.node.inputs[1:]
    return {0: b.op("Trilu", b.gradient(), *others, upper=form.integer("upper", 1))}


def _depth_to_space(form: Form, b: Builder) -> Gradients:
    """The inverse rearrangement of G."""
    size = form.integer("blocksize", 1)
    if form.text("mode", "DCR") == "DCR":
        return {0: b.op("SpaceToDepth", b.gradient(), blocksize=size)}
    # (N, C, H b, W b) -> (N, C, H b, W, b) -> (N, C, W, b, H, b) -> (N, C, b, b, H, W)
    columns = b.op("Reshape", b.gradient(), [0, 0, 0, -1, size])
    columns = b.op("Transpose", columns, perm=[0, 1, 3, 4, 2])
    cells = b.op("Reshape", columns, [0, 0, 0, 0, -1, size])
    cells = b.op("Transpose", cells, perm=[0, 1, 5, 3, 4, 2])
    return {0: b.reshape_like(cells, b.input())}


def _space_to_depth(form: Form, b: Builder) -> Gradients:
    size = form.integer("blocksize", 1)
    return {0: b.op("DepthToSpace", b.gradient(), blocksize=size)}


LAYOUT = {
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), Rule(_reshaped)),
    **dict.fromkeys(("Gather", "GatherElements", "GatherND"), Rule(_chosen)),
    **dict.fromkeys(("ScatterElements", "ScatterND"), Rule(_scatter, _refuse_scatter)),
    "Concat": Rule(_concat),
    "DepthToSpace": Rule(_depth_to_space),
    "Pad": Rule(_pad, _refuse_pad),
    "Slice": Rule(_slice),
    "SpaceToDepth": Rule(_space_to_depth),
    "Split": Rule(_split),
    "Tile": Rule(_tile, unknown_rank),
    "TopK": Rule(_top_k),
    "Transpose": Rule(_transpose),
    "Trilu": Rule(_trilu),
}
