"""Gradients of convolutions: by ConvGrad where it is there, else in standard operators.

dL/dx is the transposed convolution of G = dL/dy. dL/dW holds, for each place (tap) of the
kernel, the products of G with the pixels that this place meets, a strided slice of x:

    dW[m, c, tap] = sum over n and positions of G[n, m, position] x[n, c, slice of the tap]
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.engine import blocked
from onnxq.engine.builder import Builder
from onnxq.engine.form import Form, Gradients, Rule, sizes
from onnxq.engine.kernels import MICROSOFT


@dataclass(frozen=True)
class Window:
    """A convolution's attributes, all explicit; lists have one entry per spatial dimension."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begins: list[int]
    ends: list[int]
    group: int

    def attributes(self) -> dict[str, int | list[int]]:
        """Those of Conv, ConvTranspose and ConvGrad."""
        return {
            "kernel_shape": self.kernel,
            "strides": self.strides,
            "dilations": self.dilations,
            "pads": [*self.begins, *self.ends],
            "group": self.group,
        }

    def left_over(self, size: int, axis: int) -> int:
        """Pixels at the end of a spatial dimension that no window reaches."""
        extent = self.dilations[axis] * (self.kernel[axis] - 1) + 1
        padded = size + self.begins[axis] + self.ends[axis]
        return (padded - extent) % self.strides[axis]


def _window(form: Form) -> Window:
    kernel = list(form.shape(1) or ())[2:]
    ones = [1] * len(kernel)
    strides, dilations = form.integers("strides", ones), form.integers("dilations", ones)
    pads = form.integers("pads", [0] * (2 * len(kernel)))
    auto = form.text("auto_pad", "NOTSET")
    if auto.startswith("SAME"):
        pads = _same_pads(form.dimensions()[2:], kernel, strides, dilations, auto == "SAME_LOWER")
    begins, ends = pads[: len(kernel)], pads[len(kernel) :]
    return Window(kernel, strides, dilations, begins, ends, form.integer("group", 1))


def _same_pads(
    spatial: list[int | None],
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    lower: bool,
) -> list[int]:
    """What auto_pad stands for: as many windows as strides fit into the image."""
    begins, ends = [], []
    for size, k, stride, dilation in zip(spatial, kernel, strides, dilations, strict=True):
        assert size is not None
        count = -(-size // stride)
        missing = max((count - 1) * stride + dilation * (k - 1) + 1 - size, 0)
        small, large = missing // 2, missing - missing // 2
        begins.append(large if lower else small)
        ends.append(small if lower else large)
    return begins + ends


def _conv(form: Form, b: Builder) -> Gradients:
    x, weights, g, window = b.input(0), b.input(1), b.gradient(), _window(form)
    block = blocked.block_for(form)
    found = {}
    if block is not None and 0 in form.wanted and set(window.strides) == {1}:
        found[0] = blocked.data_gradient(form, b, block)
    if b.training_kernels:
        found |= _kernel_gradients(form, b, window, form.wanted & {0, 1} - found.keys())
    if 0 in form.wanted - found.keys():
        found[0] = _data_gradient(b, g, weights, x, window)
    if 1 in form.wanted - found.keys():
        found[1] = weight_gradient(b, x, g, weights, window)
    if 2 in form.wanted:
        found[2] = _bias_gradient(b, g, len(window.kernel))
    return found


def _kernel_gradients(form: Form, b: Builder, window: Window, wanted: frozenset[int]) -> Gradients:
    if not wanted:
        return {}
    inputs = (b.gradient(), b.input(0), b.input(1))
    present = [0 in wanted, 1 in wanted]
    attributes = window.attributes()
    results = b.ops(present, "ConvGrad", *inputs, domain=MICROSOFT, attributes=attributes)
    return {index: results[index] for index in wanted}


def _data_gradient(
    b: Builder, g: ir.Value, weights: ir.Value, x: ir.Value, window: Window
) -> ir.Value:
    """The transposed convolution of G; pixels that no window reached take zeros."""
    spatial = sizes(x)[2:]
    known = [size for size in spatial if size is not None]
    attributes = window.attributes()
    if len(known) == len(window.kernel):
        extra = [window.left_over(size, axis) for axis, size in enumerate(known)]
        return b.op("ConvTranspose", g, weights, attributes=attributes, output_padding=extra)
    if set(window.strides) == {1}:
        return b.op("ConvTranspose", g, weights, attributes=attributes)
    cut = {**attributes, "pads": [0] * (2 * len(window.kernel))}
    whole = b.op("ConvTranspose", g, weights, attributes=cut)
    return _crop(b, whole, x, window)


def _crop(b: Builder, whole: ir.Value, x: ir.Value, window: Window) -> ir.Value:
    """The image out of the padded one, which may end before the image does."""
    count = len(window.kernel)
    padded = b.op("Pad", whole, [0] * (2 + count + 2) + [s - 1 for s in window.strides])
    starts, axes = window.begins, list(range(2, 2 + count))
    size = b.op("Slice", b.op("Shape", x), [2], [2 + count])
    return b.op("Slice", padded, starts, b.op("Add", size, starts), axes)


def weight_gradient(
    b: Builder, x: ir.Value, g: ir.Value, weights: ir.Value, window: Window
) -> ir.Value:
    """DL/dW of a convolution from x to an output with gradient g."""
    zeros = [0, 0]
    pads = [*zeros, *window.begins, *zeros, *window.ends]
    padded = b.op("Pad", x, pads) if any(pads) else x
    places = itertools.product(*map(range, window.kernel))
    taps = [_tap(b, padded, g, window, place) for place in places]
    outputs, depth = (size or 0 for size in sizes(weights)[:2])
    if depth == 1 and outputs == window.group:
        found = _depthwise_products(b, taps, g)
    else:
        found = _group_products(b, taps, g, window.group, depth)
    return b.op("Reshape", found, [outputs, depth, *window.kernel])


def _tap(
    b: Builder, padded: ir.Value, g: ir.Value, window: Window, place: tuple[int, ...]
) -> ir.Value:
    """The pixels that one place of the kernel meets, in the shape of the output's image."""
    count = len(window.kernel)
    if set(window.kernel) == {1} and set(window.strides) == {1}:
        return padded
    starts = [at * dilation for at, dilation in zip(place, window.dilations, strict=True)]
    axes, spatial = list(range(2, 2 + count)), [size for size in sizes(g)[2:] if size is not None]
    if len(spatial) == count:
        steps = zip(starts, spatial, window.strides, strict=True)
        ends = b.integers([start + (size - 1) * stride + 1 for start, size, stride in steps])
    else:
        last = b.op("Sub", b.op("Slice", b.op("Shape", g), [2], [2 + count]), [1])
        ends = b.op("Add", b.op("Mul", last, window.strides), [start + 1 for start in starts])
    return b.op("Slice", padded, starts, ends, axes, window.strides)


def _depthwise_products(b: Builder, taps: list[ir.Value], g: ir.Value) -> ir.Value:
    """(channels, taps): one sum of products for each channel and tap."""
    axes = [0, *range(2, 2 + len(sizes(g)[2:]))]
    sums = [b.reduce("ReduceSum", b.op("Mul", tap, g), axes) for tap in taps]
    columns = [b.op("Unsqueeze", each, [1]) for each in sums]
    return b.op("Concat", *columns, axis=1)


def _group_products(
    b: Builder, taps: list[ir.Value], g: ir.Value, group: int, depth: int
) -> ir.Value:
    """(outputs, depth, taps): a product of matrices for each sample and group."""
    parts = [b.op("Reshape", tap, [0, group, depth, -1]) for tap in taps]
    columns = b.op("Concat", *parts, axis=2) if len(parts) > 1 else parts[0]
    rows = b.op("Reshape", g, [0, group, (sizes(g)[1] or 0) // group, -1])
    products = b.op("MatMul", rows, b.op("Transpose", columns, perm=[0, 1, 3, 2]))
    summed = b.op("Reshape", b.reduce("ReduceSum", products, [0]), [-1, len(taps), depth])
    return b.op("Transpose", summed, perm=[0, 2, 1])


def _bias_gradient(b: Builder, g: ir.Value, spatial: int) -> ir.Value:
    return b.reduce("ReduceSum", g, [0, *range(2, 2 + spatial)])


def _conv_transpose(form: Form, b: Builder) -> Gradients:
    """The roles of x and G are exchanged: dx = Conv(G, W), dW that of this convolution."""
    x, weights, g, window = b.input(0), b.input(1), b.gradient(), _window(form)
    found = {}
    if 0 in form.wanted:
        found[0] = b.op("Conv", g, weights, attributes=window.attributes())
    if 1 in form.wanted and b.training_kernels:
        inputs, attributes = (x, g, weights), window.attributes()
        _, found[1] = b.ops(
            [False, True], "ConvGrad", *inputs, domain=MICROSOFT, attributes=attributes
        )
    elif 1 in form.wanted:
        found[1] = weight_gradient(b, g, x, weights, window)
    if 2 in form.wanted:
        found[2] = _bias_gradient(b, g, len(window.kernel))
    return found


def _refuse_conv(form: Form) -> str | None:
    if form.shape(1) is None:
        return "the shape of its weights is not known"
    automatic = form.text("auto_pad", "NOTSET").startswith("SAME")
    if automatic and None in (form.dimensions() or [None])[2:]:
        return "with auto_pad its padding depends on a size that is not known"
    return None


def _refuse_conv_transpose(form: Form) -> str | None:
    if form.text("auto_pad", "NOTSET") != "NOTSET" or form.integers("output_shape", []):
        return "its padding is automatic; write it as explicit pads"
    return "the shape of its weights is not known" if form.shape(1) is None else None


def _forward(form: Form, b: Builder) -> ir.Value | None:
    block = blocked.block_for(form)
    return None if block is None else blocked.forward(form, b, block)


CONVOLUTIONS = {
    "Conv": Rule(_conv, _refuse_conv, _forward),
    "ConvTranspose": Rule(_conv_transpose, _refuse_conv_transpose),
}
