"""The threshold that loses the least information, as TensorRT chooses it.

Migacz, "8-bit inference with TensorRT" (GTC 2017). For each threshold T = i bins of |x|:
P is the histogram up to T, what lies beyond added to its last bin; Q is the histogram up
to T (without what lies beyond) pooled into the levels of the grid and spread evenly again
over those bins of each level that are not empty. T is the one of least KL(P‖Q).

Values equal to zero don't enter: every grid holds them exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxq.numerics.histogram import BINS_PER_SIDE, Histogram

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
