"""One-dimensional k-means: dynamic programming for the start, Lloyd's steps to the end.

In one dimension clusters are intervals of the sorted numbers, so that the least error

    D_k(j) = min_i  D_(k-1)(i) + sum over points i+1 ... j of  w (x - mean)^2

is a dynamic programme (Wang and Song, "Ckmeans.1d.dp", 2011) whose best i never falls as j
rises: halving the range of j level by level finds all of them in O(points log points). It is
run on at most `GROUPS` groups of neighbouring points; Lloyd's steps on the points follow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxq.numerics.points import Floats, Points, make_points

GROUPS = 4096
"""Groups of neighbouring points on which the start is exact."""

MOST_STEPS = 500
"""Lloyd's steps at most; from this start a few dozen are enough."""

SPARSE_SHARE = 0.02
"""Share of exact zeros from which zero stays exact."""

Ints = NDArray[np.int64]


def kmeans(points: Points, count: int) -> Floats:
    """The centroids of least weighted squared error, ascending; fewer where points are fewer.

    Where more than `SPARSE_SHARE` of the numbers are exactly 0, one centroid is exactly 0.

    Args:
        points: the numbers.
        count: K, at least 1.

    Returns:
        float64, (min(K, points),).
    """
    if points.values.size <= count:
        return points.values.copy()
    groups = _grouped(points)
    start = points.values if groups.values.size <= count else _best_partition(groups, count)
    return refine(points, start[:count], pin_zero=points.zero_share > SPARSE_SHARE)


def refine(points: Points, centroids: Floats, *, pin_zero: bool = False) -> Floats:
    """Lloyd's steps until no point changes its centroid; the error never rises.

    Args:
        points: the numbers.
        centroids: ascending, to start from.
        pin_zero: the centroid nearest to zero becomes 0 and stays there.
    """
    found = np.array(centroids, dtype=np.float64)
    pinned = int(np.abs(found).argmin()) if pin_zero else None
    cuts: Ints | None = None
    for _ in range(MOST_STEPS):
        if pinned is not None:
            found[pinned] = 0.0
        now = _cuts(points, found)
        if cuts is not None and np.array_equal(now, cuts):
            break
        cuts = now
        total, moment = np.diff(points.total[cuts]), np.diff(points.moment[cuts])
        filled = total > 0
        found[filled] = moment[filled] / total[filled]
    if pinned is not None:
        found[pinned] = 0.0
    return np.sort(found)


def squared_error(points: Points, centroids: Floats) -> float:
    """Sum of w (x - nearest centroid)^2."""
    cuts = _cuts(points, centroids)
    total, moment = np.diff(points.total[cuts]), np.diff(points.moment[cuts])
    energy = np.diff(points.energy[cuts])
    return float((energy - 2 * centroids * moment + centroids * centroids * total).sum())


def nearest(values: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The index of the nearest of at most 256 ascending centroids, uint8."""
    borders = ((centroids[1:].astype(np.float64) + centroids[:-1]) / 2).astype(np.float32)
    return np.searchsorted(borders, values).astype(np.uint8)


def _cuts(points: Points, centroids: Floats) -> Ints:
    """Where the points of each centroid begin, and the end: (K + 1,)."""
    inner = np.searchsorted(points.values, (centroids[1:] + centroids[:-1]) / 2)
    return np.concatenate([[0], inner, [points.values.size]]).astype(np.int64)


def _grouped(points: Points) -> Points:
    """Neighbouring points put together, with density^(1/3): fine where centroids lie dense."""
    if points.values.size <= GROUPS:
        return points
    ends = np.quantile(points.values, [0.0, 1.0])
    edges = np.linspace(ends[0], ends[1], GROUPS + 1)
    density = np.diff(points.total[np.searchsorted(points.values, edges[1:-1])], prepend=0.0)
    share = np.cumsum(np.cbrt(np.append(density, points.total[-1] - density.sum())))
    bounds = np.interp(np.linspace(0, share[-1], GROUPS + 1), np.append(0.0, share), edges)
    cuts = np.unique(np.searchsorted(points.values, bounds[1:-1]))
    cuts = np.unique(np.concatenate([[0], cuts, [points.values.size]]))
    total, moment = np.diff(points.total[cuts]), np.diff(points.moment[cuts])
    return make_points(moment / total, total)


def _best_partition(points: Points, count: int) -> Floats:
    """The means of the intervals of least error: the dynamic programme."""
    size = points.values.size
    errors = _interval_error(points, np.zeros(size + 1, np.int64), np.arange(size + 1))
    choices = np.zeros((count, size + 1), np.int32)
    for k in range(1, count):
        errors, choices[k] = _next_row(points, errors)
    cuts = [size]
    for k in range(count - 1, 0, -1):
        cuts.append(int(choices[k][cuts[-1]]))
    bounds = np.unique([0, *cuts])
    total, moment = np.diff(points.total[bounds]), np.diff(points.moment[bounds])
    return np.asarray(moment / total)


def _interval_error(points: Points, begin: Ints, end: Ints) -> Floats:
    """Squared error about the mean of points begin ... end - 1, elementwise."""
    total = points.total[end] - points.total[begin]
    moment = points.moment[end] - points.moment[begin]
    energy = points.energy[end] - points.energy[begin]
    empty = total <= 0
    error = energy - moment * moment / np.where(empty, 1.0, total)
    return np.where(empty, 0.0, np.maximum(error, 0.0))


def _next_row(points: Points, errors: Floats) -> tuple[Floats, NDArray[np.int32]]:
    """D_k and its choices from D_(k-1): ends of intervals, every other one on each level."""
    size = points.values.size
    best, choice = np.zeros(size + 1), np.zeros(size + 1, np.int64)
    step = 1 << size.bit_length()
    while step > 1:
        ends = np.arange(step // 2, size + 1, step)
        low = choice[ends - step // 2]
        after = ends + step // 2
        high = np.where(after <= size, choice[np.minimum(after, size)], ends)
        _search(points, errors, ends, low, np.minimum(high, ends), best, choice)
        step //= 2
    return best, choice.astype(np.int32)


def _search(
    points: Points, errors: Floats, ends: Ints, low: Ints, high: Ints, best: Floats, choice: Ints
) -> None:
    """Of each end the best beginning in low ... high, all ends at once; in place."""
    lengths = np.maximum(high - low, 0) + 1
    offsets = np.cumsum(lengths) - lengths
    begins = np.arange(lengths.sum()) - np.repeat(offsets - low, lengths)
    totals = errors[begins] + _interval_error(points, begins, np.repeat(ends, lengths))
    least = np.minimum.reduceat(totals, offsets)
    hits = np.where(totals == np.repeat(least, lengths), begins, points.values.size + 1)
    best[ends], choice[ends] = least, np.minimum.reduceat(hits, offsets)
