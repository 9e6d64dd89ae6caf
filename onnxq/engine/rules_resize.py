"""Gradient of Resize.

Resize is linear in x and works on one axis after the other, y = R_1 x R_2ᵀ: so
dx = R_1ᵀ G R_2, with the matrices of the sizes, the mode and its attributes. ONNX Runtime
itself gives them: R is what the operator makes of the identity.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxq.engine.builder import Attribute, Builder
from onnxq.engine.form import Form, Gradients, Rule, sizes
from onnxq.engine.sums import same_dimensions
from onnxq.runtime.session import open_session

HALF_PIXEL = ("half_pixel", "pytorch_half_pixel")


def _resize(form: Form, b: Builder) -> Gradients:
    factors = _factors(form)
    if factors is not None and _is_blocks(form):
        return {0: _sum_blocks(b, factors)}
    g, rank = b.gradient(), form.rank() or 0
    for axis in range(2, rank):
        matrix = b.array(_matrix(form, axis))
        order = [each for each in range(rank) if each != axis] + [axis]
        back = sorted(range(rank), key=order.__getitem__)
        product = b.op("MatMul", b.op("Transpose", g, perm=order), matrix)
        g = b.op("Transpose", product, perm=back)
    return {0: g}


def _sum_blocks(b: Builder, factors: list[int]) -> ir.Value:
    """Each pixel takes the sum of G over the block that it became."""
    mean = b.op("AveragePool", b.gradient(), kernel_shape=factors, strides=factors)
    return b.op("Mul", mean, math.prod(factors) * 1.0)


def _matrix(form: Form, axis: int) -> np.ndarray:
    """(size after, size before) float32: what each pixel takes from each along one axis."""
    before, after = (sizes(v)[axis] or 1 for v in (form.node.inputs[0], form.node.outputs[0]))
    x = ir.val("x", ir.DataType.FLOAT, [before, 1, before, 1])
    scale = _along(form, 2, axis)
    if scale is None:
        rest, amount = [None, None], np.array([before, 1, after, 1], np.int64)
    else:
        rest, amount = [None], np.array([1, 1, scale, 1], np.float32)
    given = ir.val("given", const_value=ir.tensor(amount, name="given"))
    node = ir.node("Resize", [x, *rest, given], _attributes(form))
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    opsets = {"": form.opset}
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[given], opset_imports=opsets)
    session = open_session(ir.Model(graph, ir_version=8))
    eye = np.eye(before, dtype=np.float32).reshape(before, 1, before, 1)
    found: np.ndarray = session.run(["y"], {"x": eye})[0]
    return found.reshape(before, after).T


def _attributes(form: Form) -> dict[str, Attribute]:
    given = {name: each.value for name, each in form.node.attributes.items()}
    given.pop("axes", None)
    return given


def _along(form: Form, index: int, axis: int) -> float | None:
    """The scale (input 2) or the size (input 3) of an axis; None where it isn't given."""
    given, rank = form.constant(index), form.rank() or 0
    if given is None or not given.size:
        return None
    axes = [each % rank for each in form.integers("axes", list(range(rank)))]
    if axis in axes:
        return float(given[axes.index(axis)])
    return 1.0 if index == 2 else float(form.dimensions()[axis] or 0)


def _factors(form: Form) -> list[int] | None:
    """Whole spatial factors of a Resize of an (N, C, ...) tensor; None where they aren't."""
    ratios = []
    for axis, size in enumerate(form.dimensions()):
        after = _along(form, 3, axis)
        # A free dimension can't be resized by a constant size to a whole factor.
        ratios.append(_along(form, 2, axis) or (after / size if after and size else 0.0))
    if len(ratios) < 3 or ratios[:2] != [1, 1] or not all(r >= 1 and r == int(r) for r in ratios):
        return None
    return [int(ratio) for ratio in ratios[2:]]


def _is_blocks(form: Form) -> bool:
    """Whether each pixel becomes a block of its own, as wide as the factors."""
    position = form.text("coordinate_transformation_mode", "half_pixel")
    rounding = form.text("nearest_mode", "round_prefer_floor")
    rounded = position in HALF_PIXEL and rounding in ("round_prefer_floor", "round_prefer_ceil")
    nearest = form.text("mode", "nearest") == "nearest"
    return nearest and (rounded or (position == "asymmetric" and rounding == "floor"))


def _refuse(form: Form) -> str | None:
    if form.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return "it resizes a part of the image"
    if form.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "it keeps the aspect ratio"
    if _is_blocks(form) and _factors(form) is not None:
        return None
    before, after = form.node.inputs[0], form.node.outputs[0]
    if None in (*sizes(before)[2:], *sizes(after)[2:]) or not sizes(before) or not sizes(after):
        return "the sizes that it maps are not known"
    assert before is not None and before.shape is not None and after.shape is not None
    kept = len(before.shape) >= 3 and same_dimensions(before.shape[:2], after.shape[:2])
    return None if kept else "it resizes more than the spatial axes"


RESIZE = {"Resize": Rule(_resize, _refuse)}
