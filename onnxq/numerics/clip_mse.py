"""Ranges of activations and thresholds of weights of least mean squared error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.numerics.histogram import Histogram
from onnxq.numerics.quantizers import (
    ACTIVATIONS,
    FloatArray,
    Kind,
    fake_quant_weight,
    weight_scale,
    weight_threshold_max,
)

Floats = NDArray[np.float64]

Ends = tuple[float, float]
"""The lowest and the highest value of a range, real: `Range` rounds one of them."""

_COARSE = 0.86 ** np.arange(40, dtype=np.float64)
"""Factors on the largest range that are tried first, down to 1/360 of it."""

_SPREADS = (
    np.geomspace(1 / 16, 16, 33),
    np.geomspace(1 / 1.6, 1.6, 25),
    np.geomspace(1 / 1.1, 1.1, 17),
)
"""Factors on one end of the range that are tried while the other is held, in rounds."""


@dataclass(frozen=True)
class _Steps:
    """The density of a histogram as jumps at its edges: error = jumps · s³F(edges/s)."""

    edges: Floats
    jumps: Floats

    def errors(self, scale: Floats, smallest: Floats, largest: Floats) -> Floats:
        """Mean square error of each candidate; all arguments and the result ``(candidates,)``.

        Args:
            scale: real units per integer.
            smallest: the smallest integer less the zero point.
            largest: the largest integer less the zero point.
        """
        u = self.edges / scale[:, None]
        nearest = np.rint(u)
        np.clip(nearest, smallest[:, None], largest[:, None], out=nearest)
        u -= nearest
        cubed = u * u
        cubed *= u
        cubed *= 1 / 3
        nearest *= 1 / 12
        cubed += nearest
        return np.asarray(scale**3 * (cubed @ self.jumps))


def mse_ends(histogram: Histogram, largest: Ends, num_bits: int, kind: Kind) -> Ends:
    """The range of least mean square quantization error inside the largest range.

    Args:
        histogram: the distribution; zeros, which have no error, don't enter.
        largest: the largest range, which is the answer where the histogram is empty.
        num_bits: 2 to 8.
        kind: of the quantizer.
    """
    lowest, highest = largest
    steps = _steps(histogram, largest)
    if steps is None:
        return largest
    if lowest == 0.0 or highest == 0.0:
        factor = _best_factor(lambda f: _errors(steps, f * lowest, f * highest, num_bits))
        return factor * lowest, factor * highest
    if kind == "symmetric":
        factor = _best_factor(lambda f: _symmetric_errors(steps, f * highest, num_bits))
        return -factor * highest, factor * highest
    return _both_ends(steps, largest, num_bits)


def _steps(histogram: Histogram, largest: Ends) -> _Steps | None:
    """The occupied part of the histogram between the bins of both limits, as counts per value."""
    occupied = np.flatnonzero(histogram.counts)
    edges, (lowest, highest) = histogram.edges, largest
    if lowest == 0.0:
        occupied = occupied[edges[occupied] >= 0.0]
    if occupied.size == 0:
        return None
    first, last = int(occupied[0]), int(occupied[-1])
    counts = histogram.counts[first : last + 1].astype(np.float64)
    edges = edges[first : last + 2].copy()
    # A spike at the largest value (a ReLU6's 6) must not be spread beyond it.
    sliver = histogram.width / 16
    if edges[-2] < highest:
        edges[-1] = min(edges[-1], max(highest, edges[-2] + sliver))
    if edges[1] > lowest:
        edges[0] = max(edges[0], min(lowest, edges[1] - sliver))
    density = np.concatenate(([0.0], counts / counts.sum() / np.diff(edges), [0.0]))
    return _Steps(edges, density[:-1] - density[1:])


def _errors(steps: _Steps, lowest: Floats, highest: Floats, num_bits: int) -> Floats:
    """Errors of ranges, the zero point rounded as the quantizer rounds it."""
    largest = ACTIVATIONS["asymmetric"].largest(num_bits)
    scale = (highest - lowest) / largest
    zero_point = np.clip(np.rint(-lowest / scale), 0, largest)
    return steps.errors(scale, -zero_point, largest - zero_point)


def _symmetric_errors(steps: _Steps, threshold: Floats, num_bits: int) -> Floats:
    quantizer = ACTIVATIONS["symmetric"]
    zero_point = np.full_like(threshold, quantizer.fixed_zero_point(num_bits))
    scale = threshold / quantizer.steps(num_bits)
    return steps.errors(scale, -zero_point, quantizer.largest(num_bits) - zero_point)


def _best_factor(errors: Callable[[Floats], Floats]) -> float:
    """The factor in (0, 1] of least error: a geometric grid, then a fine one around its best."""
    best = int(np.argmin(errors(_COARSE)))
    low, high = _COARSE[min(best + 1, _COARSE.size - 1)], _COARSE[max(best - 1, 0)]
    fine = np.concatenate((np.linspace(low, high, 33), _COARSE[[best]]))
    return float(fine[np.argmin(errors(fine))])


def _both_ends(steps: _Steps, largest: Ends, num_bits: int) -> Ends:
    """Both limits: first scaled together, then each in turn while the other is fixed."""
    ends = np.array(largest)
    together = _best_factor(lambda f: _errors(steps, f * ends[0], f * ends[1], num_bits))
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


SMALLEST_SHARE = 0.5
"""FAT's lower bound of alpha, the share of the largest threshold."""
LOW_BITS, LOW_BITS_SHARE = 8, 0.05
"""Below so many bits the bound is lower: where integers are few, far more is clipped."""

STEP = 0.01
"""Between the factors that are tried."""


def smallest_share(num_bits: int) -> float:
    """The smallest threshold or width of a quantizer, as a share of the largest."""
    return SMALLEST_SHARE if num_bits >= LOW_BITS else LOW_BITS_SHARE


def weight_threshold(
    weight: FloatArray, method: str, num_bits: int, axis: int | None
) -> FloatArray:
    """T of a weight, the bound at which it is clipped: of each channel, or of all.

    - max: T = max|w| (FAT).
    - any other method: T = a max|w| with the a in [0.5, 1], below 8 bits in [0.05, 1], of least
      sum (w - fake_quant(w))^2. Weights are few and all known: the error itself is the best
      criterion.

    Args:
        weight: float32.
        method: a calibration method.
        num_bits: 2 to 8.
        axis: the channel axis, or None for one threshold.

    Returns:
        float32, (channels,) or ().
    """
    largest = weight_threshold_max(weight, axis)
    if method == "max":
        return largest
    least = smallest_share(num_bits)
    grid = np.linspace(1.0, least, round((1.0 - least) / STEP) + 1, dtype=np.float32)
    errors = np.stack([_error(weight, largest * a, num_bits, axis) for a in grid])
    return np.asarray(largest * grid[np.argmin(errors, axis=0)], dtype=np.float32)


def _error(
    weight: FloatArray, threshold: FloatArray, num_bits: int, axis: int | None
) -> np.ndarray:
    fake = fake_quant_weight(weight, weight_scale(threshold, num_bits), num_bits, axis)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return np.asarray(np.square(weight - fake).sum(axis=others, dtype=np.float64))
