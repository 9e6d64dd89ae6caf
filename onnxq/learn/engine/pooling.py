"""Gradient of AveragePool: the engine's own gives an empty tensor where the batch is free."""

from __future__ import annotations

import math

from onnxq.learn.engine.definition import Definition
from onnxq.learn.engine.form import Form
from onnxq.learn.engine.rules import Rule


def _average_pool(form: Form, d: Definition) -> None:
    """Each pixel takes G / count of every window that covers it; G = dL/dy.

    The sum over windows is a transposed convolution with ones, one channel at a time. A
    window's count is its size, without the padding where `count_include_pad` is 0.
    """
    kernel, strides, pads = _window(form)
    extra = _surplus(form) or []
    share = d.op("Mul", d.gradient(), d.scalar(1 / math.prod(kernel)))
    if any(pads) and not form.integer("count_include_pad", 0):
        share = d.op("Div", share, _covered(form, d))
    one_channel = d.op("Reshape", share, d.integers([-1, 1] + [0] * len(kernel)))
    ones = d.op("Expand", d.scalar(1.0), d.integers([1, 1, *kernel]))
    attributes = {"strides": strides, "pads": pads, "output_padding": extra}
    spread = d.op("ConvTranspose", one_channel, ones, attributes=attributes)
    d.result(0, d.op("Reshape", spread, d.op("Shape", d.input(0))))


def _covered(form: Form, d: Definition) -> str:
    """The share of each window that lies on the image, (1, 1, ...)."""
    kernel, strides, pads = _window(form)
    sizes = [size for size in _spatial(form) if isinstance(size, int)]
    image = d.op("Expand", d.scalar(1.0), d.integers([1, 1, *sizes]))
    attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    return d.op("AveragePool", image, attributes=attributes, count_include_pad=1)


def _window(form: Form) -> tuple[list[int], list[int], list[int]]:
    """Kernel, strides and pads, with the operator's defaults."""
    kernel = form.integers("kernel_shape", [])
    strides = form.integers("strides", [1] * len(kernel))
    return kernel, strides, form.integers("pads", [0] * (2 * len(kernel)))


def _spatial(form: Form) -> list[object]:
    return list(form.dimensions(form.node.inputs[0]) or ())[2:]


def _surplus(form: Form) -> list[int] | None:
    """Pixels at the end of each dimension that no window covers; None where not known."""
    kernel, strides, pads = _window(form)
    sizes = _spatial(form)
    if all(stride == 1 for stride in strides) and not any(pads):
        return [0] * len(kernel)
    if len(sizes) != len(kernel):
        return None
    surplus = []
    for axis, (size, window, stride) in enumerate(zip(sizes, kernel, strides, strict=True)):
        if not isinstance(size, int):
            return None
        surplus.append((size + pads[axis] + pads[axis + len(kernel)] - window) % stride)
    return surplus


def _refuse_average_pool(form: Form) -> str | None:
    if form.string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "with auto_pad its windows depend on its input; write it as explicit pads"
    if form.integer("ceil_mode", 0):
        return "with ceil_mode its last window reaches over the edge"
    if any(size != 1 for size in form.integers("dilations", [])):
        return "it is dilated"
    if _surplus(form) is None:
        return "the size of its input is not known"
    return None


def pooling_rules() -> dict[str, Rule]:
    """The rules of this module by operator."""
    return {"AveragePool": Rule(_average_pool, _refuse_average_pool)}
