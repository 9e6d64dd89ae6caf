"""Gradients of pools with windows; G = dL/dy."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxq.engine.builder import Builder
from onnxq.engine.form import Form, Gradients, Rule
from onnxq.engine.sums import scatter, scatter_add


def _average_pool(form: Form, b: Builder) -> Gradients:
    """Each pixel takes G / count of every window that covers it.

    The sum over windows is a transposed convolution with ones, one channel at a time. A
    window's count is its size, without the padding where `count_include_pad` is 0.
    """
    kernel, strides, pads = _window(form)
    share = b.op("Mul", b.gradient(), 1 / math.prod(kernel))
    if any(pads) and not form.integer("count_include_pad", 0):
        share = b.op("Div", share, _covered(form, b))
    one_channel = b.op("Reshape", share, [-1, 1] + [0] * len(kernel))
    ones = b.op("Expand", 1.0, [1, 1, *kernel])
    attributes = {"strides": strides, "pads": pads, "output_padding": _left_over(form) or []}
    spread = b.op("ConvTranspose", one_channel, ones, attributes=attributes)
    return {0: b.reshape_like(spread, b.input())}


def _covered(form: Form, b: Builder) -> ir.Value:
    """The share of each window that lies on the image, (1, 1, ...)."""
    kernel, strides, pads = _window(form)
    image = b.op("Expand", 1.0, [1, 1, *(size or 0 for size in form.dimensions()[2:])])
    attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    return b.op("AveragePool", image, attributes=attributes, count_include_pad=1)


def _window(form: Form) -> tuple[list[int], list[int], list[int]]:
    """Kernel, strides and pads, with the operator's defaults."""
    kernel = form.integers("kernel_shape", [])
    strides = form.integers("strides", [1] * len(kernel))
    return kernel, strides, form.integers("pads", [0] * (2 * len(kernel)))


def _left_over(form: Form) -> list[int] | None:
    """Pixels at the end of each dimension that no window covers; None where not known."""
    kernel, strides, pads = _window(form)
    spatial = [size for size in form.dimensions()[2:] if size is not None]
    if all(stride == 1 for stride in strides) and not any(pads):
        return [0] * len(kernel)
    if len(spatial) != len(kernel):
        return None
    padded = np.array(spatial) + pads[: len(kernel)] + pads[len(kernel) :]
    return [int(each) for each in (padded - kernel) % strides]


def _refuse_average_pool(form: Form) -> str | None:
    if form.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "with auto_pad its windows depend on its input; write it as explicit pads"
    if form.integer("ceil_mode", 0):
        return "with ceil_mode its last window reaches over the edge"
    if any(size != 1 for size in form.integers("dilations", [])):
        return "it is dilated"
    return "the size of its input is not known" if _left_over(form) is None else None


def _max_pool(form: Form, b: Builder) -> Gradients:
    """Each window's G goes to the pixel that it chose, the first of those that tie."""
    x = b.input()
    places = b.optional_output(1)
    zeros = b.op("Expand", 0.0, b.op("Reshape", b.op("Size", x), [1]))
    flat = [b.op("Reshape", each, [-1]) for each in (places, b.gradient())]
    kernel, strides, _ = _window(form)
    apart = all(k <= stride for k, stride in zip(kernel, strides, strict=True))
    collected = (scatter if apart else scatter_add)(b, zeros, *flat)
    return {0: b.reshape_like(collected, x)}


def _refuse_max_pool(form: Form) -> str | None:
    if form.integer("storage_order", 0):
        return "it counts pixels by columns"
    return None


POOLS = {
    "AveragePool": Rule(_average_pool, _refuse_average_pool),
    "MaxPool": Rule(_max_pool, _refuse_max_pool),
}
