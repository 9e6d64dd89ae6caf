"""Corrections of float weights before they are quantized: equalized channels, shifted biases.

**Equalization**: scales that make the weight ranges of channels equal across layers, without
changing the function.

Nagel, van Baalen, Blankevoort, Welling, "Data-free quantization through weight equalization and
bias correction" (ICCV 2019). Where a layer feeds another through f with f(sx) = s·f(x), s > 0,
channel i between them may be divided by any s_i and the next layer's weights for it multiplied by
s_i. With r1_i, r2_i = max|w| of channel i in either layer,

    s_i = sqrt(r1_i / r2_i)                                                       (eq. 11)

makes both ranges sqrt(r1_i·r2_i). Chains of layers are visited pair by pair until the scales
converge.

**Bias correction**: the mean error that quantized weights cause in a layer's output, from mean
inputs.

Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", 2019, §4.2:
E[y~] = E[y] + E[e x] with e = W~ - W, so b <- b - e E[x] removes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.numerics.quantizers import FloatArray

Floats = NDArray[np.float64]

SCALE_LIMIT = 1024.0
"""No channel is scaled further than this, up or down."""

TOLERANCE = 1e-3
"""Scales that move by a smaller factor have converged."""

MAX_ROUNDS = 200

DEAD = 1e-6
"""A channel whose range is smaller than this share of the layer's largest is dead."""


@dataclass(frozen=True)
class Link:
    """Channels between two layers.

    Attributes:
        producer: name of the layer that writes them.
        consumer: name of the layer that reads them.
        floor: least scale of each channel, ``(channels,)``, at most 1; None means no limit.
        fixed: channels whose scale stays 1, ``(channels,)`` bool; None means none.
    """

    producer: str
    consumer: str
    floor: Floats | None = None
    fixed: NDArray[np.bool_] | None = None


def equalization_scales(magnitudes: Mapping[str, Floats], links: Sequence[Link]) -> list[Floats]:
    """The scale of each channel of each link, iterated to convergence.

    A dead channel, whose weights are zero in either layer, keeps the scale 1 where no floor is
    known. With a floor it is scaled too: behind a dead channel, whose value is constant, the next
    layer's weights are often the largest of all.

    Args:
        magnitudes: max|w| over the kernel by layer, ``(groups, out, in)`` where out and in are
            channels in one group.
        links: in the order of the data flow.

    Returns:
        ``(channels,)`` for each link: divide the producer's output channels (and bias) by it and
        multiply the consumer's input channels.
    """
    current = {name: values.astype(np.float64) for name, values in magnitudes.items()}
    scales = [np.ones(out_ranges(current[link.producer]).size) for link in links]
    for _ in range(MAX_ROUNDS):
        moved = 1.0
        for link, scale in zip(links, scales, strict=True):
            step = _step(current, link, scale)
            scale *= step
            current[link.producer] = scale_output(current[link.producer], 1 / step)
            current[link.consumer] = scale_input(current[link.consumer], step)
            moved = max(moved, float(step.max()), float((1 / step).max()))
        if moved < 1 + TOLERANCE:
            break
    return scales


def _step(current: Mapping[str, Floats], link: Link, scale: Floats) -> Floats:
    """The factor from the current scales to the next ones."""
    first, second = out_ranges(current[link.producer]), in_ranges(current[link.consumer])
    least_first, least_second = DEAD * first.max(), DEAD * second.max()
    if least_first == 0.0 or least_second == 0.0:
        return np.ones_like(scale)
    dead = (first < least_first) | (second < least_second)
    ratio = np.maximum(first, least_first) / np.maximum(second, least_second)
    wanted = np.clip(scale * np.sqrt(ratio), 1 / SCALE_LIMIT, SCALE_LIMIT)
    if link.floor is None:
        # Its constant output could grow without bound.
        wanted[dead] = 1.0
    else:
        wanted = np.maximum(wanted, link.floor)
    if link.fixed is not None:
        wanted[link.fixed] = 1.0
    return np.asarray(wanted / scale)


def out_ranges(magnitude: Floats) -> Floats:
    """max|w| of each output channel: ``(groups, out, in)`` to ``(groups * out,)``."""
    return np.asarray(magnitude.max(axis=2).reshape(-1))


def in_ranges(magnitude: Floats) -> Floats:
    """max|w| of each input channel: ``(groups, out, in)`` to ``(groups * in,)``."""
    return np.asarray(magnitude.max(axis=1).reshape(-1))


def scale_output(weight: Floats, factor: Floats) -> Floats:
    """Weights ``(groups, out, in, ...)`` times a factor per output channel ``(groups * out,)``."""
    groups, out = weight.shape[:2]
    return np.asarray(weight * factor.reshape(groups, out, *[1] * (weight.ndim - 2)))


def scale_input(weight: Floats, factor: Floats) -> Floats:
    """Weights ``(groups, out, in, ...)`` times a factor per input channel ``(groups * in,)``."""
    groups, inputs = weight.shape[0], weight.shape[2]
    return np.asarray(weight * factor.reshape(groups, 1, inputs, *[1] * (weight.ndim - 3)))


BLOCK = 2**22
"""Weights handled at once."""


def weight_error_shift(
    weight: FloatArray, fake: FloatArray, mean_input: np.ndarray, op_type: str, axis: int
) -> FloatArray:
    """The mean error of each output channel, e E[x].

    The borders of a padded convolution, where fewer weights meet an input, are ignored.

    Args:
        weight: the float weights; Conv (out, in/group, ...), Gemm and MatMul 2-D.
        fake: the weights quantized and converted back, the same shape.
        mean_input: E[x] of each input channel, shape (in,).
        op_type: Conv, Gemm or MatMul.
        axis: the weight's axis of output channels.

    Returns:
        float32, shape (out,).
    """
    if op_type != "Conv":
        rows, fakes = (weight, fake) if axis == 0 else (weight.T, fake.T)
        return _by_rows(rows, fakes, lambda error, _: error @ mean_input)
    means = _means_by_output(mean_input, weight.shape)

    def shift(error: np.ndarray, where: slice) -> np.ndarray:
        per_input = error.reshape(*error.shape[:2], -1).sum(axis=2)
        return np.asarray((per_input * means[where]).sum(axis=1))

    return _by_rows(weight, fake, shift)


def _by_rows(
    weight: FloatArray, fake: FloatArray, shift: Callable[[np.ndarray, slice], np.ndarray]
) -> FloatArray:
    """The error of each row of output channels, computed block by block in float64."""
    found = np.empty(len(weight), np.float32)
    step = max(1, BLOCK * len(weight) // max(1, weight.size))
    for start in range(0, len(weight), step):
        where = slice(start, start + step)
        found[where] = shift((fake[where] - weight[where]).astype(np.float64), where)
    return found


def shift_weight_gradient(
    bias_gradient: FloatArray,
    mean_input: np.ndarray,
    shape: tuple[int, ...],
    op_type: str,
    axis: int,
) -> FloatArray:
    """The part of dL/dW~ that flows through a corrected bias, -dL/db (x) E[x].

    With b = b_float - (W~ - W) E[x], a layer computes W~ (x - E[x]) + ...: its quantized weights
    see inputs without their mean.

    Args:
        bias_gradient: dL/db, (out,) elements.
        mean_input: E[x] of each input channel, shape (in,).
        shape: of the weight; Conv (out, in/group, ...), Gemm and MatMul 2-D.
        op_type: Conv, Gemm or MatMul.
        axis: the weight's axis of output channels.

    Returns:
        float32, of a shape that broadcasts to `shape`.
    """
    flat = bias_gradient.reshape(-1)
    if op_type != "Conv":
        outer = np.outer(flat, mean_input)
        return np.asarray(-(outer if axis == 0 else outer.T), dtype=np.float32)
    means = _means_by_output(mean_input, shape)
    product = -(flat[:, None] * means)
    return np.asarray(product, np.float32).reshape(*product.shape, *[1] * (len(shape) - 2))


def _means_by_output(mean_input: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """E[x] of the inputs that each output channel reads, (out, in/group)."""
    groups = mean_input.size // shape[1]
    outputs = np.repeat(np.arange(groups), shape[0] // groups)
    return np.asarray(mean_input.reshape(groups, shape[1])[outputs])
