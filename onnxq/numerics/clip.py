"""The range that a tensor's quantizer starts with, from the tensor's statistics.

A range is (left, right) with left ≤ 0 ≤ right, so that zero is a code. Grids, num_bits = n:

=====================  ====================================  ====================
tensor                 scale                                 codes (zero point 0)
=====================  ====================================  ====================
unsigned               right / (2ⁿ − 1)                      0 … 2ⁿ − 1
signed, symmetric      right / (2ⁿ⁻¹ − 1), left = −right     −2ⁿ⁻¹ … 2ⁿ⁻¹ − 1
signed, asymmetric     (right − left) / (2ⁿ − 1)             −z … 2ⁿ − 1 − z
=====================  ====================================  ====================

with z = round(−left / scale). A tensor that is always zero has the range (0, 0).
"""

from __future__ import annotations

import math
from typing import Literal, Protocol, get_args

import numpy as np

from onnxq.numerics.aciq import aciq_range
from onnxq.numerics.clip_mse import mse_range
from onnxq.numerics.entropy import entropy_threshold
from onnxq.numerics.histogram import BINS_PER_SIDE, Histogram

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
