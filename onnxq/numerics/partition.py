"""Ordered points cut into intervals of least squared error about their means.

Which is to say, since the sum of w x^2 is the same for all cuts, with the largest

    D_k(j) = max_i  D_(k-1)(i) + (sum of w x over points i ... j - 1)^2 / (sum of w)

a dynamic programme over all cuts (Wang and Song, "Ckmeans.1d.dp", 2011). Here it runs over a few
cuts at a time, in far less time and nearly always to the same error: first over the cuts that
Ward's merging removes last, then for each cut over a window about where it stands, which at first
reaches to the neighbouring cuts and shrinks to single points.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from onnxq.numerics.merging import Ints, lasting_cuts
from onnxq.numerics.points import Floats, Points

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
    """Where the intervals begin, and the end, by the number of intervals.

    Args:
        points: the points.
        counts: numbers of intervals, from 1 to 256, each fewer than points.

    Returns:
        int64, (K + 1,), ascending from 0, by K; the same whatever other numbers are asked for.
    """
    lasting = lasting_cuts(points)
    few = [k for k in counts if k <= MOST_CHOSEN]
    starts = _chosen(points, _with_ends(points, lasting[: CANDIDATES - 1]), few)
    starts |= {k: _with_ends(points, lasting[: k - 1]) for k in counts if k > MOST_CHOSEN}
    return {k: _best_cuts(points, starts[k]) for k in counts}


def _with_ends(points: Points, inner: Ints) -> Ints:
    return np.sort(np.append(inner, (0, points.values.size)))


def _chosen(points: Points, cuts: Ints, counts: Collection[int]) -> dict[int, Ints]:
    """Of these cuts the best for each number of intervals."""
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
    """The best cuts within windows about these, and about what comes out, until none moves."""
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
    """Of the places (cuts, places) of each inner cut the best together, and what is largest."""
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
    """(sum w x)^2 / sum w of intervals; -inf where nothing lies between."""
    weights = points.total[ends] - points.total[begins]
    values = np.square(points.moment[ends] - points.moment[begins])
    np.divide(values, weights, out=values, where=weights > 0)
    values[ends <= begins] = -np.inf
    return values
