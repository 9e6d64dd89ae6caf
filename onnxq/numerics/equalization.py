"""Scales that equalize the weight ranges of channels across layers without changing the function.

Nagel, van Baalen, Blankevoort, Welling, "Data-free quantization through weight equalization and
bias correction" (ICCV 2019). Where a layer feeds another through f with f(sx) = s·f(x), s > 0,
channel i between them may be divided by any s_i and the next layer's weights for it multiplied by
s_i. With r1_i, r2_i = max|w| of channel i in either layer,

    s_i = sqrt(r1_i / r2_i)                                                       (eq. 11)

makes both ranges sqrt(r1_i·r2_i). Chains of layers are visited pair by pair until the scales
converge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
