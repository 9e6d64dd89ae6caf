"""Clip thresholds of least mean squared error, of histograms and of weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.numerics.histogram import Histogram
from onnxq.numerics.qparams import (
    FloatArray,
    fake_quant_weight,
    weight_scale,
    weight_threshold_max,
)

Floats = NDArray[np.float64]

_COARSE = 0.86 ** np.arange(40, dtype=np.float64)
"""Factors on the largest range that are tried first, down to 1/360 of it."""

_SPREADS = (
    np.geomspace(1 / 16, 16, 33),
    np.geomspace(1 / 1.6, 1.6, 25),
    np.geomspace(1 / 1.1, 1.1, 17),
)
"""Factors on one limit that are tried while the other is held, in rounds."""


@dataclass(frozen=True)
class _Steps:
    """The density of a histogram as jumps at its edges: error = jumps · s³F(edges/s)."""

    edges: Floats
    jumps: Floats

    def errors(self, scale: Floats, quant_min: Floats, quant_max: Floats) -> Floats:
        """Mean square error of each candidate; all arguments and the result ``(candidates,)``."""
        u = self.edges / scale[:, None]
        nearest = np.rint(u)
        np.clip(nearest, quant_min[:, None], quant_max[:, None], out=nearest)
        u -= nearest
        cubed = u * u
        cubed *= u
        cubed *= 1 / 3
        nearest *= 1 / 12
        cubed += nearest
        return np.asarray(scale**3 * (cubed @ self.jumps))


def mse_range(
    histogram: Histogram, left: float, right: float, num_bits: int, symmetric: bool
) -> tuple[float, float]:
    """The range inside (left, right) of least mean square quantization error.

    Args:
        histogram: the distribution; zeros, which have no error, don't enter.
        left: the left limit of the largest range; 0 for an unsigned tensor.
        right: the right limit of the largest range.
        num_bits: 2 to 8.
        symmetric: a signed tensor's grid has its zero point in the middle (left = −right).

    Returns:
        (left, right) in real units; the largest range itself where the histogram is empty.
    """
    steps = _steps(histogram, left, right)
    if steps is None:
        return left, right
    if left == 0.0 or right == 0.0:
        factor = _best_factor(lambda f: _errors(steps, f * left, f * right, num_bits))
        return factor * left, factor * right
    if symmetric:
        factor = _best_factor(lambda f: _symmetric_errors(steps, f * right, num_bits))
        return -factor * right, factor * right
    return _both_ends(steps, left, right, num_bits)


def _steps(histogram: Histogram, left: float, right: float) -> _Steps | None:
    """The occupied part of the histogram between the limits' bins, as counts per value."""
    occupied = np.flatnonzero(histogram.counts)
    edges = histogram.edges
    if left == 0.0:
        occupied = occupied[edges[occupied] >= 0.0]
    if occupied.size == 0:
        return None
    first, last = int(occupied[0]), int(occupied[-1])
    counts = histogram.counts[first : last + 1].astype(np.float64)
    edges = edges[first : last + 2].copy()
    # A spike at the largest value (a ReLU6's 6) must not be spread beyond it.
    sliver = histogram.width / 16
    if edges[-2] < right:
        edges[-1] = min(edges[-1], max(right, edges[-2] + sliver))
    if edges[1] > left:
        edges[0] = max(edges[0], min(left, edges[1] - sliver))
    density = np.concatenate(([0.0], counts / counts.sum() / np.diff(edges), [0.0]))
    return _Steps(edges, density[:-1] - density[1:])


def _errors(steps: _Steps, left: Floats, right: Floats, num_bits: int) -> Floats:
    """Errors of ranges (left, right), the zero point rounded as the quantizer rounds it."""
    quant_max = 2**num_bits - 1
    scale = (right - left) / quant_max
    zero_point = np.clip(np.rint(-left / scale), 0, quant_max)
    return steps.errors(scale, -zero_point, quant_max - zero_point)


def _symmetric_errors(steps: _Steps, threshold: Floats, num_bits: int) -> Floats:
    half = 2 ** (num_bits - 1)
    ends = np.full_like(threshold, half)
    return steps.errors(threshold / (half - 1), -ends, ends - 1)


def _best_factor(errors: Callable[[Floats], Floats]) -> float:
    """The factor in (0, 1] of least error: a geometric grid, then a fine one around its best."""
    best = int(np.argmin(errors(_COARSE)))
    low, high = _COARSE[min(best + 1, _COARSE.size - 1)], _COARSE[max(best - 1, 0)]
    fine = np.concatenate((np.linspace(low, high, 33), _COARSE[[best]]))
    return float(fine[np.argmin(errors(fine))])


def _both_ends(steps: _Steps, left: float, right: float, num_bits: int) -> tuple[float, float]:
    """Both limits: first scaled together, then each in turn while the other is held."""
    together = _best_factor(lambda f: _errors(steps, f * left, f * right, num_bits))
    ends = np.array([left, right])
    best = together * ends
    error = float(_errors(steps, best[:1], best[1:], num_bits)[0])
    for spread in _SPREADS:
        for end in (0, 1):
            tried = np.clip(best[end] * spread / ends[end], _COARSE[-1], 1.0) * ends[end]
            candidates = np.repeat(best[:, None], tried.size, axis=1)
            candidates[end] = tried
            errors = _errors(steps, candidates[0], candidates[1], num_bits)
            if errors.min() < error:
                error = float(errors.min())
                best = candidates[:, np.argmin(errors)]
    return float(best[0]), float(best[1])


ALPHA_MIN = 0.5
"""FAT's lower bound of alpha."""
LOW_BITS, LOW_BITS_MIN = 8, 0.05
"""Below that width the bound is lower: where codes are few, far more is clipped."""

STEP = 0.01
"""Between the factors that are tried."""


def alpha_min(num_bits: int) -> float:
    """The smallest threshold of a quantizer, as a share of the largest magnitude."""
    return ALPHA_MIN if num_bits >= LOW_BITS else LOW_BITS_MIN


def weight_threshold(
    weight: FloatArray, method: str, num_bits: int, axis: int | None
) -> FloatArray:
    """T of a symmetric weight quantizer, of each channel or of all.

    - max: T = max|w| (FAT).
    - any other method: the alpha in [0.5, 1], below 8 bits in [0.05, 1], of least
      sum (w - fake_quant(w))^2, T = alpha * max|w|. Weights are few and all known: the error
      itself is the best criterion.

    Args:
        weight: float weights.
        method: a clip method.
        num_bits: width of a code.
        axis: the channel axis, or None for one threshold.

    Returns:
        float32, shape (channels,) or ().
    """
    largest = weight_threshold_max(weight, axis)
    if method == "max":
        return largest
    least = alpha_min(num_bits)
    grid = np.linspace(1.0, least, round((1.0 - least) / STEP) + 1, dtype=np.float32)
    errors = np.stack([_error(weight, largest * a, num_bits, axis) for a in grid])
    return np.asarray(largest * grid[np.argmin(errors, axis=0)], dtype=np.float32)


def _error(
    weight: FloatArray, threshold: FloatArray, num_bits: int, axis: int | None
) -> np.ndarray:
    fake = fake_quant_weight(weight, weight_scale(threshold, num_bits), num_bits, axis)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return np.asarray(np.square(weight - fake).sum(axis=others, dtype=np.float64))
