"""What a search looks for, and which setting each layer gets.

Every best trade of bytes for error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.options.recipe import Recipe
from onnxq.search.table import Effect, Measure, Setting

DEFAULT_DROP: dict[Measure, float] = {"kl": 0.5, "error": 5.0}
"""The target of `--codebook auto` alone: points of accuracy, or RMSE of the outputs in percent."""

POINTS_PER_NAT = 25.0
"""Estimated drop over KL divergence, to begin with. Four models at many settings: 18 to 38."""

LEAST_POINTS_PER_NAT = 15.0
"""The slope is not taken to be less, however few decisions change."""

PRIOR_NATS = 0.02
"""The divergence that `POINTS_PER_NAT` weighs as much as."""


@dataclass(frozen=True)
class Goal:
    """One target of a search.

    Attributes:
        max_drop: points, or percent where outputs are no decisions; None where size is the goal.
        max_size: bytes of the file; None where the drop is the goal.
    """

    max_drop: float | None = None
    max_size: int | None = None


def goal_of(recipe: Recipe, original_bytes: int, measure: Measure) -> Goal:
    """The goal that a recipe states, or the default one."""
    if recipe.max_size is not None:
        ratio = recipe.max_size < 1
        return Goal(max_size=int(recipe.max_size * (original_bytes if ratio else 1)))
    return Goal(max_drop=DEFAULT_DROP[measure] if recipe.max_drop is None else recipe.max_drop)


def drop_of(effect: Effect) -> float:
    """The estimated drop in points; without decisions the RMSE of the outputs in percent.

    RMSE = 100 sqrt(relative squared error).
    """
    return 100 * math.sqrt(max(effect.error, 0.0)) if effect.drop is None else effect.drop


def points_per_nat(effects: Iterable[Effect]) -> float:
    """The slope of the drop over the divergence, over all whole models seen so far.

    sum of drops / sum of divergences: a ratio of sums, in which the models that are further
    off, and whose drops stand out of their noise, weigh more.
    """
    drop, nats = POINTS_PER_NAT * PRIOR_NATS, PRIOR_NATS
    for effect in effects:
        drop += max(effect.drop or 0.0, 0.0)
        nats += effect.error
    return max(drop / nats, LEAST_POINTS_PER_NAT)


def expected_drop(effect: Effect, slope: float) -> float:
    """The drop that the divergence stands for: slope * KL; without decisions the RMSE."""
    return drop_of(effect) if effect.drop is None else slope * effect.error


def meets(effect: Effect, goal: Goal, slope: float) -> bool:
    """Whether a whole model meets the goal, by its decisions and by its divergence.

    On few samples no decision may change although outputs are far off, so both count.
    """
    if goal.max_size is not None:
        return effect.size <= goal.max_size
    assert goal.max_drop is not None
    return max(drop_of(effect), expected_drop(effect, slope)) <= goal.max_drop


def allowed_error(drop: float, measure: Measure, slope: float = POINTS_PER_NAT) -> float:
    """The error of a whole model that stands for a drop; see `expected_drop`."""
    return drop / slope if measure == "kl" else (drop / 100) ** 2


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
