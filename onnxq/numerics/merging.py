"""Ward's merging of ordered points: neighbours become one where that costs least.

It gives nested intervals of every number at once (Ward, 1963), near the best ones.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from onnxq.numerics.points import Points

GROUPS = 2048
"""Groups of neighbouring points that merging starts from, at most."""

Ints = NDArray[np.int64]


def lasting_cuts(points: Points) -> Ints:
    """Where intervals begin, but for the first: the cut that merging removes last comes first."""
    groups = _group_starts(points)
    return groups[_merged(points, groups)]


def _group_starts(points: Points) -> Ints:
    """Where groups of neighbouring points begin.

    Half of the limits are spread with density^(1/3), fine where centroids lie dense; half with the
    points themselves, so that many groups remain whatever the points are.
    """
    size = points.values.size
    if size <= GROUPS:
        return np.arange(size)
    edges = np.linspace(points.values[0], points.values[-1], GROUPS + 1)
    inner = points.total[np.searchsorted(points.values, edges[1:-1])]
    mass = np.diff(inner, prepend=0.0, append=points.total[-1])
    share = np.append(0.0, np.cumsum(np.cbrt(mass)))
    bounds = np.interp(np.linspace(0, share[-1], GROUPS // 2 + 1), share, edges)
    even = np.arange(GROUPS // 2) * size // (GROUPS // 2)
    return np.union1d(np.searchsorted(points.values, bounds[1:-1]), even)


def _merged(points: Points, groups: Ints) -> Ints:
    """The groups that begin an interval but the first, in the reverse order of their merging.

    Two neighbours merge where that raises the error least, by
    (difference of means)^2 t_i t_j / (t_i + t_j).
    """
    total = np.add.reduceat(points.weights, groups).tolist()
    mean = (np.add.reduceat(points.weights * points.values, groups) / total).tolist()
    before, after = list(range(-1, len(total) - 1)), list(range(1, len(total) + 1))
    age, order = [0] * len(total), []

    def rise(i: int) -> tuple[float, int, int]:
        j = after[i]
        apart = mean[i] - mean[j]
        return apart * apart * total[i] * total[j] / (total[i] + total[j]), i, age[i]

    heap = [rise(i) for i in range(len(total) - 1)]
    heapq.heapify(heap)
    while heap:
        _, i, known = heapq.heappop(heap)
        if known != age[i]:
            continue
        j, k, h = after[i], after[after[i]], before[i]
        order.append(j)
        both = total[i] + total[j]
        mean[i], total[i] = (mean[i] * total[i] + mean[j] * total[j]) / both, both
        after[i], age[i], age[j] = k, age[i] + 1, -1
        if k < len(total):
            before[k] = i
            heapq.heappush(heap, rise(i))
        if h >= 0:
            age[h] += 1
            heapq.heappush(heap, rise(h))
    return np.array(order[::-1], np.int64)
