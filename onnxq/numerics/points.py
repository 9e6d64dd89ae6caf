"""Many numbers as few sorted, weighted points: the input of one-dimensional k-means.

Up to `MOST_POINTS` numbers are kept. More are counted in as many bins of equal width, each
represented by the mean of its numbers. They are read in blocks, so that no second copy of a large
layer is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Block = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Values, and the importance of each: arrays that broadcast to the shape of the values."""

MOST_POINTS = 2**20


@dataclass(frozen=True)
class Points:
    """Points in ascending order, with running sums.

    Attributes:
        values: x, ascending, float64 (points,).
        weights: w > 0 of each.
        total: sum of w before each point and after the last, (points + 1,).
        moment: the same of w x.
        energy: the same of w x^2.
        zero_share: share of the numbers that are exactly 0.
    """

    values: Floats
    weights: Floats
    total: Floats
    moment: Floats
    energy: Floats
    zero_share: float


def make_points(values: Floats, weights: Floats, zero_share: float = 0.0) -> Points:
    """Points from ascending values and their weights."""
    moment = weights * values
    total, moments, energy = map(_before, (weights, moment, moment * values))
    return Points(values, weights, total, moments, energy, zero_share)


def _before(terms: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(terms)])


def collect_points(blocks: Callable[[], Iterable[Block]], size: int) -> Points:
    """The points of all numbers in some blocks.

    Args:
        blocks: returns the blocks; it is called more than once.
        size: the number of numbers in them; at least 1.
    """
    if size > MOST_POINTS:
        return _binned(blocks, size)
    parts = [(v.ravel(), np.broadcast_to(w, v.shape).ravel()) for v, w in blocks()]
    values = np.concatenate([v for v, _ in parts]).astype(np.float64)
    weights = np.concatenate([w for _, w in parts]).astype(np.float64)
    unique, inverse = np.unique(values, return_inverse=True)
    zeros = np.count_nonzero(values == 0) / size
    return make_points(unique, np.bincount(inverse, weights).astype(np.float64), zeros)


def _binned(blocks: Callable[[], Iterable[Block]], size: int) -> Points:
    ends = [(float(v.min()), float(v.max())) for v, _ in blocks()]
    low, high = min(a for a, _ in ends), max(b for _, b in ends)
    factor = np.float32((MOST_POINTS - 1) / max(high - low, 1e-30))
    total, moment = np.zeros(MOST_POINTS), np.zeros(MOST_POINTS)
    zeros = 0
    for values, weights in blocks():
        spread = np.broadcast_to(weights, values.shape).ravel()
        flat = values.ravel()
        bins = ((flat - np.float32(low)) * factor).astype(np.int32)
        np.clip(bins, 0, MOST_POINTS - 1, out=bins)
        total += np.bincount(bins, spread, MOST_POINTS)
        moment += np.bincount(bins, spread * flat, MOST_POINTS)
        zeros += int(np.count_nonzero(flat == 0))
    used = total > 0
    means = moment[used] / total[used]
    order = np.argsort(means, kind="stable")
    return make_points(means[order], total[used][order], zeros / size)
