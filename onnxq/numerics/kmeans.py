"""One-dimensional k-means of weighted points: the best intervals, then Lloyd's steps.

The intervals are those of least squared error about their means. Since the sum of w x^2 is the same
for all cuts, they are those with the largest

    D_k(j) = max_i  D_(k-1)(i) + (sum of w x over points i ... j - 1)^2 / (sum of w)

Dynamic programming over all cuts would solve that (Wang and Song, "Ckmeans.1d.dp", 2011). Here it
runs over a few cuts at a time, in far less time and nearly always to the same error:

- first over the cuts that Ward's merging removes last (Ward, 1963: nested intervals of every number
  at once),
- then for each cut over a window about its place, which at first reaches to the neighbouring cuts
  and shrinks to single points.

The points are the numbers, sorted and weighted. Up to `MOST_POINTS` numbers are kept. More are
counted in as many bins of equal width, each represented by the mean of its numbers. They are read
in blocks, so that no second copy of a large layer is made.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable
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


GROUPS = 2048
"""Groups of neighbouring points that merging starts from, at most."""

Ints = NDArray[np.int64]


def lasting_cuts(points: Points) -> Ints:
    """Starts of intervals, except the first; the cut that merging removes last comes first."""
    groups = _group_starts(points)
    return groups[_merged(points, groups)]


def _group_starts(points: Points) -> Ints:
    """Starts of groups of neighbouring points.

    Half of the groups are spread with density^(1/3), finely where centroids are dense. Half are
    spread with the points themselves, so that many groups remain whatever the points are.
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
    """Starts of groups, except the first, in the reverse order of their merging.

    The two neighbours are merged that raise the error least, by (difference of means)^2 t_i t_j /
    (t_i + t_j).
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


CANDIDATES = 256
"""Intervals between the cuts among which the start is the best choice."""

MOST_CHOSEN = 64
"""Up to so many intervals the start is chosen; more are as merging leaves them."""

WINDOW = 8
"""Places to either side of a cut among which the best is looked for."""

SHRINK = 4.0
"""By how much the windows shrink once a step gains little."""

SMALLEST_GAIN = 1e-3
"""A step gains little where it lowers the error by less than this share."""


def partitions(points: Points, counts: Collection[int]) -> dict[int, Ints]:
    """Starts of the intervals, and the end, by the number of intervals.

    Args:
        points: the points.
        counts: numbers of intervals, from 1 to 256, each fewer than points.

    Returns:
        int64, (K + 1,), ascending from 0, by K; each is the same whatever the other numbers.
    """
    lasting = lasting_cuts(points)
    few = [k for k in counts if k <= MOST_CHOSEN]
    starts = _chosen(points, _with_ends(points, lasting[: CANDIDATES - 1]), few)
    starts |= {k: _with_ends(points, lasting[: k - 1]) for k in counts if k > MOST_CHOSEN}
    return {k: _best_cuts(points, starts[k]) for k in counts}


def _with_ends(points: Points, inner: Ints) -> Ints:
    return np.sort(np.append(inner, (0, points.values.size)))


def _chosen(points: Points, cuts: Ints, counts: Collection[int]) -> dict[int, Ints]:
    """The best of these cuts for each number of intervals."""
    values = _values(points, cuts[None, :], cuts[:, None])
    best, choices = values[:, 0], [np.zeros(cuts.size, np.int64)]
    for _ in range(1, max(counts, default=1)):
        sums = values + best
        choices.append(sums.argmax(axis=1))
        best = sums[np.arange(cuts.size), choices[-1]]
    found = {}
    for k in counts:
        places = [cuts.size - 1]
        for row in reversed(choices[:k]):
            places.append(int(row[places[-1]]))
        found[k] = cuts[places[::-1]]
    return found


def _best_cuts(points: Points, cuts: Ints) -> Ints:
    """The best cuts within windows about these, repeated about the result until none moves."""
    places = np.arange(-WINDOW, WINDOW + 1)
    order = np.arange(1, cuts.size - 1)[:, None]
    reach, best = 1.0, -np.inf
    while cuts.size > 2:
        gaps = np.diff(cuts)[:, None] * (reach / WINDOW)
        steps = np.maximum(1.0, np.where(places < 0, gaps[:-1], gaps[1:]))
        near = cuts[1:-1, None] + (places * steps).astype(np.int64)
        near = np.clip(near, order, points.values.size - cuts.size + 1 + order)
        chosen, found = _best_of(points, near)
        if np.array_equal(chosen, cuts) and gaps.max() <= 1:
            break
        if found - best <= SMALLEST_GAIN * max(points.energy[-1] - found, 0.0):
            reach /= SHRINK
        cuts, best = chosen, found
    return cuts


def _best_of(points: Points, near: Ints) -> tuple[Ints, float]:
    """The best combination of the candidate places (cuts, places), and its objective."""
    count, width = near.shape[0] + 1, near.shape[1]
    ends = np.zeros((count + 1, width), np.int64)
    ends[1:-1], ends[-1] = near, points.values.size
    values = _values(points, ends[:-1, :, None], ends[1:, None, :])
    best, choices = values[0, 0], np.zeros((count, width), np.int64)
    everyone = np.arange(width)
    for k in range(1, count):
        sums = best[:, None] + values[k]
        choices[k] = sums.argmax(axis=0)
        best = sums[choices[k], everyone]
    cuts, place = ends[:, 0].copy(), 0
    for k in range(count - 1, 0, -1):
        place = choices[k, place]
        cuts[k] = ends[k, place]
    return cuts, float(best[0])


def _values(points: Points, begins: Ints, ends: Ints) -> Floats:
    """(sum w x)^2 / sum w of intervals; -inf for empty ones."""
    weights = points.total[ends] - points.total[begins]
    values = np.square(points.moment[ends] - points.moment[begins])
    np.divide(values, weights, out=values, where=weights > 0)
    values[ends <= begins] = -np.inf
    return values


MOST_STEPS = 500
"""Lloyd's steps at most; from this start one is enough, or a few dozen where zero is held."""

SPARSE_SHARE = 0.02
"""Share of exact zeros from which zero stays exact."""


def kmeans(points: Points, counts: Collection[int]) -> dict[int, Floats]:
    """The centroids of least weighted squared error, ascending.

    Where more than `SPARSE_SHARE` of the numbers are exactly 0, one centroid is exactly 0.

    Args:
        points: the numbers.
        counts: every K to find, each at least 1.

    Returns:
        float64, (min(K, points),), by K; each is the same whatever the other counts.
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
    """Starts of each centroid's points, and the end: (K + 1,)."""
    inner = np.searchsorted(points.values, (centroids[1:] + centroids[:-1]) / 2)
    return np.concatenate([[0], inner, [points.values.size]]).astype(np.int64)
