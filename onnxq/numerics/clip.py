"""Clip thresholds of a tensor from its histogram.

By the maximum, a percentile, KL divergence, ACIQ or the mean squared error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from onnxq.numerics.clip_mse import mse_range
from onnxq.numerics.histogram import BINS_PER_SIDE, Histogram


def laplace_clip(num_bits: int) -> float:
    """T/b of least error for a Laplace density, e.g. 5.03 at 4 bits."""
    quotient = 3.0 * 4.0**num_bits
    return _root(lambda t: math.exp(-t) - t / quotient)


def normal_clip(num_bits: int) -> float:
    """T/σ of least error for a normal density, e.g. 2.55 at 4 bits."""
    quotient = 3.0 * 4.0**num_bits

    def derivative(t: float) -> float:
        tail = math.erfc(t / math.sqrt(2.0))
        return math.sqrt(2.0 / math.pi) * math.exp(-t * t / 2) - t * tail - t / quotient

    return _root(derivative)


def aciq_range(
    histogram: Histogram, num_bits: int, signed: bool, symmetric: bool
) -> tuple[float, float]:
    """The range by the density, Laplace or normal, under which the values are likelier.

    Args:
        histogram: the distribution of the tensor.
        num_bits: 2 to 8.
        signed: False takes positive values alone, as half of a symmetric density.
        symmetric: a signed density is centred on zero, not on its mean.

    Returns:
        (left, right) in real units, (0, 0) where the histogram holds no value to fit.
    """
    counts = histogram.counts.astype(np.float64)
    if not signed:
        counts[:BINS_PER_SIDE] = 0.0
    if not counts.any():
        return 0.0, 0.0
    weights = counts / counts.sum()
    centred = signed and not symmetric
    mean = float(weights @ histogram.centres) if centred else 0.0
    threshold = _threshold(weights, histogram.centres - mean, num_bits + (not signed))
    return (mean - threshold, mean + threshold) if signed else (0.0, threshold)


def _threshold(
    weights: NDArray[np.float64], deviations: NDArray[np.float64], num_bits: int
) -> float:
    """T of the likelier density, each fitted by maximum likelihood."""
    b = float(weights @ np.abs(deviations))
    sigma = math.sqrt(float(weights @ deviations**2))
    if b == 0.0:
        # One bin holds everything: there is no width to fit.
        return 0.0
    laplace_likelihood = -math.log(2.0 * b) - 1.0
    normal_likelihood = -math.log(sigma * math.sqrt(2.0 * math.pi)) - 0.5
    if laplace_likelihood > normal_likelihood:
        return b * laplace_clip(num_bits)
    return sigma * normal_clip(num_bits)


def _root(falling: Callable[[float], float]) -> float:
    """The zero of a function that is positive at 0 and falls through zero before 64."""
    low, high = 0.0, 64.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0.0 else (low, middle)
    return low


_CANDIDATES = 128

_FLOOR = 1e-10
"""Stands for a probability of zero in Q, where only outliers fill the last bin of P."""


def entropy_threshold(histogram: Histogram, num_bits: int, signed: bool) -> float:
    """The threshold T of least KL divergence on |x|.

    Args:
        histogram: the distribution of the tensor.
        num_bits: 2 to 8.
        signed: levels are 2ⁿ⁻¹ on each side of zero where signed, else 2ⁿ (positive values).

    Returns:
        T in real units, 0 where there is no value other than zero.
    """
    counts = histogram.counts[BINS_PER_SIDE:].astype(np.float64)
    if signed:
        counts += histogram.counts[:BINS_PER_SIDE][::-1]
    occupied = np.flatnonzero(counts)
    if occupied.size == 0:
        return 0.0
    stop = int(occupied[-1]) + 1
    levels = 2 ** (num_bits - 1) if signed else 2**num_bits
    if stop <= levels:
        return stop * histogram.width
    candidates = np.unique(np.linspace(levels, stop, _CANDIDATES).astype(np.intp))
    divergences = [_divergence(counts, int(i), levels) for i in candidates]
    return float(candidates[int(np.argmin(divergences))] * histogram.width)


def _divergence(counts: NDArray[np.float64], stop: int, levels: int) -> float:
    """KL(P‖Q) for the threshold at the upper edge of bin stop − 1."""
    inside = counts[:stop]
    p = inside.copy()
    p[-1] += counts[stop:].sum()
    if inside.sum() == 0.0:
        return np.inf
    starts = np.arange(levels) * stop // levels
    occupied = (inside > 0).astype(np.float64)
    pooled = np.add.reduceat(inside, starts)
    shares = np.add.reduceat(occupied, starts)
    lengths = np.diff(np.append(starts, stop))
    q = np.repeat(pooled / np.maximum(shares, 1.0), lengths) * occupied
    p /= p.sum()
    q /= q.sum()
    some = p > 0
    return float(np.sum(p[some] * np.log(p[some] / np.maximum(q[some], _FLOOR))))


ClipMethod = Literal["max", "mse", "aciq", "kl", "percentile"]
CLIP_METHODS: tuple[ClipMethod, ...] = get_args(ClipMethod)

PERCENTILE = 99.99
"""The share of values, in percent, that the method "percentile" keeps inside the range."""


class RangeStatistics(Protocol):
    """What a clip method needs to know about a tensor."""

    @property
    def minimum(self) -> float:
        """The smallest value."""

    @property
    def maximum(self) -> float:
        """The largest value."""

    @property
    def histogram(self) -> Histogram:
        """The distribution of the values."""


def clip_range(
    statistics: RangeStatistics,
    method: ClipMethod,
    num_bits: int,
    signed: bool,
    symmetric: bool,
) -> tuple[float, float]:
    """The range (left, right) of a tensor by one clip method.

    - max: every value seen is inside; T = max|x|.
    - mse: the least mean square quantization error on the histogram (``clip_mse``).
    - aciq: the best clip of a fitted Laplace or normal density (``aciq``).
    - kl: the least divergence between the distributions before and after (``entropy``).
    - percentile: 99.99 % of the values are inside; for an asymmetric signed tensor what is
      left out is shared by both ends.

    No method leaves the range of "max".

    Args:
        statistics: the tensor's limits and histogram.
        method: one of ``CLIP_METHODS``.
        num_bits: 2 to 8.
        signed: False where values are never negative (those that are, count for nothing).
        symmetric: for signed tensors, left = −right.

    Returns:
        (left, right) in real units, left ≤ 0 ≤ right.

    Raises:
        ValueError: the method is unknown, or the tensor's limits are not finite.
    """
    if method not in CLIP_METHODS:
        raise ValueError(f"the clip method is '{method}', expected one of {CLIP_METHODS}")
    left, right = _max_range(statistics, signed, symmetric)
    if not (math.isfinite(left) and math.isfinite(right)):
        raise ValueError(f"the range ({left}, {right}) is not finite; leave the tensor float")
    if method == "max" or left == right:
        return left, right
    histogram = statistics.histogram
    if method == "mse":
        return mse_range(histogram, left, right, num_bits, symmetric)
    if method == "aciq":
        found = aciq_range(histogram, num_bits, signed, symmetric)
    elif method == "kl":
        threshold = entropy_threshold(histogram, num_bits, signed)
        found = (-threshold, threshold)
    else:
        found = _percentile_range(histogram, signed, symmetric)
    return _inside(found, left, right)


def _max_range(statistics: RangeStatistics, signed: bool, symmetric: bool) -> tuple[float, float]:
    left = min(float(statistics.minimum), 0.0) if signed else 0.0
    right = max(float(statistics.maximum), 0.0)
    if signed and symmetric:
        right = max(right, -left)
        left = -right
    return left, right


def _inside(found: tuple[float, float], left: float, right: float) -> tuple[float, float]:
    """The found range cut to (left, right); a method that found nothing gives all of it."""
    low, high = max(found[0], left), min(found[1], right)
    return (low, high) if low < high and low <= 0.0 <= high else (left, right)


def _percentile_range(histogram: Histogram, signed: bool, symmetric: bool) -> tuple[float, float]:
    outside = 1.0 - PERCENTILE / 100.0
    if not signed:
        return 0.0, _quantile(_positive(histogram), 1.0 - outside)
    if symmetric:
        threshold = _quantile(_folded(histogram), 1.0 - outside)
        return -threshold, threshold
    left = min(_quantile(histogram, outside / 2), 0.0)
    right = max(_quantile(histogram, 1.0 - outside / 2), 0.0)
    return left, right


def _positive(histogram: Histogram) -> Histogram:
    counts = histogram.counts.copy()
    counts[:BINS_PER_SIDE] = 0
    return Histogram(counts, histogram.zeros, histogram.exponent)


def _folded(histogram: Histogram) -> Histogram:
    """The histogram of |x|."""
    positive = _positive(histogram)
    positive.counts[BINS_PER_SIDE:] += histogram.counts[:BINS_PER_SIDE][::-1]
    return positive


def _quantile(histogram: Histogram, q: float) -> float:
    """The value below which a share q of the values lies, linear inside a bin."""
    counts = np.insert(histogram.counts, BINS_PER_SIDE, histogram.zeros)
    edges = np.insert(histogram.edges, BINS_PER_SIDE, 0.0)
    cumulative = np.concatenate(([0], np.cumsum(counts)))
    return float(np.interp(q * cumulative[-1], cumulative, edges))
