"""One-dimensional k-means: the best intervals of the sorted numbers, then Lloyd's steps."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from onnxq.numerics.merging import Ints
from onnxq.numerics.partition import partitions
from onnxq.numerics.points import Floats, Points

MOST_STEPS = 500
"""Lloyd's steps at most; from this start one is enough, or a few dozen where zero is held."""

SPARSE_SHARE = 0.02
"""Share of exact zeros from which zero stays exact."""


def kmeans(points: Points, counts: Collection[int]) -> dict[int, Floats]:
    """The centroids of least weighted squared error, ascending; fewer where points are fewer.

    Where more than `SPARSE_SHARE` of the numbers are exactly 0, one centroid is exactly 0.

    Args:
        points: the numbers.
        counts: every K to find, each at least 1.

    Returns:
        float64, (min(K, points),), by K; the same whatever other counts are asked for.
    """
    cuts = partitions(points, {k for k in counts if k < points.values.size})
    sparse = points.zero_share > SPARSE_SHARE
    found = {k: refine(points, _means(points, cuts[k]), pin_zero=sparse) for k in cuts}
    return {k: found[k] if k in found else points.values.copy() for k in counts}


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


def nearest(values: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The index of the nearest of at most 256 ascending centroids, uint8."""
    borders = ((centroids[1:].astype(np.float64) + centroids[:-1]) / 2).astype(np.float32)
    return np.searchsorted(borders, values).astype(np.uint8)


def _means(points: Points, cuts: Ints) -> Floats:
    total = np.add.reduceat(points.weights, cuts[:-1])
    return np.asarray(np.add.reduceat(points.weights * points.values, cuts[:-1]) / total)


def _cuts(points: Points, centroids: Floats) -> Ints:
    """Where the points of each centroid begin, and the end: (K + 1,)."""
    inner = np.searchsorted(points.values, (centroids[1:] + centroids[:-1]) / 2)
    return np.concatenate([[0], inner, [points.values.size]]).astype(np.int64)
