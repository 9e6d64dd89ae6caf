"""Which setting each layer gets: every best trade of bytes for error, at once.

Effects of layers add up nearly (a logit's small errors are independent, and the KL divergence is
quadratic in them), so that an allocation is a knapsack: one setting per layer, the sum of sizes
against the sum of errors. Adding one layer after another to a list of trades none of which is
both smaller and better gives the whole frontier; where it grows long, the best trade of each of
`POINTS` equal steps of size is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.search.table import Effect, Setting

POINTS = 8192
"""Trades kept while layers are added: sizes are exact to 1 / POINTS of the whole for each layer."""

Options = Sequence[Mapping[Setting, Effect]]
"""The settings of each layer."""


@dataclass(frozen=True)
class Frontier:
    """All best trades, from the smallest to the most exact.

    Attributes:
        sizes: bytes of the weights, int64, ascending.
        errors: sums of the layers' errors, float64, descending.
    """

    sizes: NDArray[np.int64]
    errors: NDArray[np.float64]
    _options: list[list[Setting]]
    _parents: list[NDArray[np.int64]]
    _chosen: list[NDArray[np.int64]]

    def within_error(self, most: float) -> int | None:
        """The smallest trade whose error is at most this; None where there is none."""
        found = np.flatnonzero(self.errors <= most)
        return int(found[0]) if found.size else None

    def within_size(self, most: float) -> int | None:
        """The most exact trade of at most so many bytes; None where there is none."""
        found = np.flatnonzero(self.sizes <= most)
        return int(found[-1]) if found.size else None

    def settings(self, point: int) -> list[Setting]:
        """The setting of each layer at one point of the frontier."""
        found = []
        for options, parents, chosen in zip(
            reversed(self._options), reversed(self._parents), reversed(self._chosen), strict=True
        ):
            found.append(options[int(chosen[point])])
            point = int(parents[point])
        return found[::-1]


def find_frontier(layers: Options, points: int = POINTS) -> Frontier:
    """The frontier of some layers.

    Args:
        layers: of each layer the effect of every setting that it may have, at least one.
        points: trades kept after each layer.
    """
    sizes, errors = np.zeros(1, np.int64), np.zeros(1)
    options, parents, chosen = [], [], []
    for effects in layers:
        settings = _worth(effects)
        more = np.array([effects[s].size for s in settings], np.int64)
        worse = np.array([effects[s].error for s in settings])
        all_sizes = (sizes[:, None] + more).ravel()
        all_errors = (errors[:, None] + worse).ravel()
        kept = _thinned(all_sizes, _undominated(all_sizes, all_errors), points)
        parents.append(kept // len(settings))
        chosen.append(kept % len(settings))
        options.append(settings)
        sizes, errors = all_sizes[kept], all_errors[kept]
    return Frontier(sizes, errors, options, parents, chosen)


def _worth(effects: Mapping[Setting, Effect]) -> list[Setting]:
    """The settings that are part of a best trade: codes and codebooks often lie close."""
    settings = list(effects)
    sizes = np.array([effects[s].size for s in settings], np.int64)
    return [settings[i] for i in _undominated(sizes, np.array([e.error for e in effects.values()]))]


def _undominated(sizes: NDArray[np.int64], errors: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of the trades than which none is smaller and no worse, by ascending size."""
    order = np.lexsort((errors, sizes))
    least = np.minimum.accumulate(errors[order])
    better = np.ones(order.size, bool)
    better[1:] = errors[order][1:] < least[:-1]
    return np.asarray(order[better])


def _thinned(sizes: NDArray[np.int64], kept: NDArray[np.int64], points: int) -> NDArray[np.int64]:
    """Of each step of size the most exact trade, which is its last, and the smallest of all."""
    if kept.size <= points:
        return kept
    found = sizes[kept]
    steps = (found - found[0]) * (points - 1) // max(int(found[-1] - found[0]), 1)
    last = np.append(steps[1:] != steps[:-1], True)
    last[0] = True
    return np.asarray(kept[last])
