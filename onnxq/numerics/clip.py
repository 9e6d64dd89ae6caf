"""The range of an activation from its histogram, by one of five calibration methods.

By the maximum, a percentile, KL divergence, ACIQ (Banner et al., "Post training 4-bit quantization
of convolutional networks", 2019) or the mean squared error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from onnxq.numerics.clip_mse import Ends, mse_ends
from onnxq.numerics.histogram import BINS_PER_SIDE, Histogram
from onnxq.numerics.quantizers import ACTIVATIONS, Kind, Range


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


def _aciq_ends(histogram: Histogram, num_bits: int, kind: Kind) -> Ends:
    """By the density, Laplace or normal, under which the values are likelier.

    One of positive values is half of a symmetric density, of one bit more; a symmetric one is
    centred on zero, an asymmetric one on its mean. (0, 0) where there is no value to fit.
    """
    counts = histogram.counts.astype(np.float64)
    if kind == "positive":
        counts[:BINS_PER_SIDE] = 0.0
    if not counts.any():
        return 0.0, 0.0
    weights = counts / counts.sum()
    mean = float(weights @ histogram.centres) if kind == "asymmetric" else 0.0
    reach = _reach(weights, histogram.centres - mean, num_bits + (kind == "positive"))
    return (0.0, reach) if kind == "positive" else (mean - reach, mean + reach)


def _reach(weights: NDArray[np.float64], deviations: NDArray[np.float64], num_bits: int) -> float:
    """How far the likelier density is kept from its mean, each fitted by maximum likelihood."""
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


def _kl_ends(histogram: Histogram, num_bits: int, kind: Kind) -> Ends:
    """(-T, T) with the T of least KL divergence on |x|, 0 where all values are zero.

    There are 2ⁿ⁻¹ levels on each side of zero, 2ⁿ where values are positive.
    """
    signed = kind != "positive"
    counts = histogram.counts[BINS_PER_SIDE:].astype(np.float64)
    if signed:
        counts += histogram.counts[:BINS_PER_SIDE][::-1]
    occupied = np.flatnonzero(counts)
    if occupied.size == 0:
        return 0.0, 0.0
    stop = int(occupied[-1]) + 1
    levels = 2 ** (num_bits - 1) if signed else 2**num_bits
    if stop <= levels:
        return -stop * histogram.width, stop * histogram.width
    candidates = np.unique(np.linspace(levels, stop, _CANDIDATES).astype(np.intp))
    divergences = [_divergence(counts, int(i), levels) for i in candidates]
    threshold = float(candidates[int(np.argmin(divergences))] * histogram.width)
    return -threshold, threshold


def _divergence(counts: NDArray[np.float64], stop: int, levels: int) -> float:
    """KL(P‖Q) where |x| is cut at the upper edge of bin stop − 1."""
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
    """What a calibration method needs to know about a tensor."""

    @property
    def minimum(self) -> float:
        """The smallest value."""

    @property
    def maximum(self) -> float:
        """The largest value."""

    @property
    def histogram(self) -> Histogram:
        """The distribution of the values."""


def calibrated_range(
    statistics: RangeStatistics, method: ClipMethod, num_bits: int, kind: Kind
) -> Range:
    """The range of an activation by one calibration method.

    - max: every value seen is inside.
    - mse: the least mean square quantization error on the histogram (`clip_mse`).
    - aciq: the best clip of a fitted Laplace or normal density.
    - kl: the least divergence between the distributions before and after.
    - percentile: 99.99 % of the values are inside; of an asymmetric tensor what is left out is
      shared by both ends.

    Zero is inside, and no method leaves the range of "max". Negative values of a tensor said to be
    positive count for nothing.

    Args:
        statistics: smallest and largest value, and histogram.
        method: one of `CLIP_METHODS`.
        num_bits: 2 to 8.
        kind: of the quantizer.

    Raises:
        ValueError: the method is unknown, or a value is not finite.
    """
    lowest, highest = _ends(statistics, method, num_bits, kind)
    return ACTIVATIONS[kind].range(lowest, highest - lowest)


def _ends(statistics: RangeStatistics, method: ClipMethod, num_bits: int, kind: Kind) -> Ends:
    if method not in CLIP_METHODS:
        raise ValueError(f"the clip method is '{method}', expected one of {CLIP_METHODS}")
    lowest, highest = ends = _max_ends(statistics, kind)
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise ValueError(f"the range {ends} is not finite; leave the tensor float")
    if method == "max" or lowest == highest:
        return ends
    histogram = statistics.histogram
    if method == "mse":
        return mse_ends(histogram, ends, num_bits, kind)
    if method == "aciq":
        return _inside(_aciq_ends(histogram, num_bits, kind), ends)
    if method == "kl":
        return _inside(_kl_ends(histogram, num_bits, kind), ends)
    return _inside(_percentile_ends(histogram, kind), ends)


def _max_ends(statistics: RangeStatistics, kind: Kind) -> Ends:
    lowest = 0.0 if kind == "positive" else min(float(statistics.minimum), 0.0)
    highest = max(float(statistics.maximum), 0.0)
    if kind == "symmetric":
        highest = max(highest, -lowest)
        lowest = -highest
    return lowest, highest


def _inside(found: Ends, largest: Ends) -> Ends:
    """What was found, cut to the largest range; a method that found nothing gives all of it."""
    low, high = max(found[0], largest[0]), min(found[1], largest[1])
    return (low, high) if low < high and low <= 0.0 <= high else largest


def _percentile_ends(histogram: Histogram, kind: Kind) -> Ends:
    outside = 1.0 - PERCENTILE / 100.0
    if kind == "positive":
        return 0.0, _quantile(_positive(histogram), 1.0 - outside)
    if kind == "symmetric":
        threshold = _quantile(_folded(histogram), 1.0 - outside)
        return -threshold, threshold
    lowest = min(_quantile(histogram, outside / 2), 0.0)
    return lowest, max(_quantile(histogram, 1.0 - outside / 2), 0.0)


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
