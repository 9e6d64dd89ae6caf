"""The goal of a search, and the frontier of the best trade-offs between bytes and error."""

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
"""Prior of the estimated drop per KL divergence. Four models at many settings had 18 to 38."""

LEAST_POINTS_PER_NAT = 15.0
"""Lower bound of that ratio, however few decisions change."""

PRIOR_NATS = 0.02
"""The weight of the prior, as a divergence in nats."""


@dataclass(frozen=True)
class Goal:
    """The target of a search; one of the two is None.

    Attributes:
        max_drop: in points, or RMSE in percent where outputs are no decisions.
        max_size: bytes of the file.
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
    """Estimated drop per KL divergence, over all whole models so far.

    It is a ratio of sums, sum of drops / sum of divergences. Models with larger drops, which stand
    out of their noise, have more weight.
    """
    drop, nats = POINTS_PER_NAT * PRIOR_NATS, PRIOR_NATS
    for effect in effects:
        drop += max(effect.drop or 0.0, 0.0)
        nats += effect.error
    return max(drop / nats, LEAST_POINTS_PER_NAT)


def expected_drop(effect: Effect, slope: float) -> float:
    """The drop that corresponds to the divergence: slope * KL; without decisions the RMSE."""
    return drop_of(effect) if effect.drop is None else slope * effect.error


def meets(effect: Effect, goal: Goal, slope: float) -> bool:
    """Whether a whole model meets the goal, by its decisions and by its divergence.

    On few samples decisions may stay the same although the outputs differ, so both count.
    """
    if goal.max_size is not None:
        return effect.size <= goal.max_size
    assert goal.max_drop is not None
    return max(drop_of(effect), expected_drop(effect, slope)) <= goal.max_drop


def allowed_error(drop: float, measure: Measure, slope: float = POINTS_PER_NAT) -> float:
    """The error of a whole model that corresponds to a drop; the inverse of `expected_drop`."""
    return drop / slope if measure == "kl" else (drop / 100) ** 2


POINTS = 8192
"""Trade-offs kept as layers are added; each rounds sizes by 1 / POINTS of the whole at most."""

Options = Sequence[Mapping[Setting, Effect]]
"""The settings of each layer."""


@dataclass(frozen=True)
class Frontier:
    """The best trade-offs between bytes and error, smallest first.

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
        """The smallest trade-off with at most this error; None where there is none."""
        found = np.flatnonzero(self.errors <= most)
        return int(found[0]) if found.size else None

    def within_size(self, most: float) -> int | None:
        """The trade-off of least error with at most so many bytes; None where there is none."""
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


def find_frontier(layers: Options) -> Frontier:
    """The frontier of some layers.

    Args:
        layers: for each layer, the effect of each of its candidate settings, at least one.
    """
    sizes, errors = np.zeros(1, np.int64), np.zeros(1)
    options, parents, chosen = [], [], []
    for effects in layers:
        settings = _worth(effects)
        more = np.array([effects[s].size for s in settings], np.int64)
        worse = np.array([effects[s].error for s in settings])
        all_sizes = (sizes[:, None] + more).ravel()
        all_errors = (errors[:, None] + worse).ravel()
        kept = _thinned(all_sizes, _undominated(all_sizes, all_errors))
        parents.append(kept // len(settings))
        chosen.append(kept % len(settings))
        options.append(settings)
        sizes, errors = all_sizes[kept], all_errors[kept]
    return Frontier(sizes, errors, options, parents, chosen)


def _worth(effects: Mapping[Setting, Effect]) -> list[Setting]:
    """The settings that are part of a best trade-off of their layer."""
    settings = list(effects)
    sizes = np.array([effects[s].size for s in settings], np.int64)
    return [settings[i] for i in _undominated(sizes, np.array([e.error for e in effects.values()]))]


def _undominated(sizes: NDArray[np.int64], errors: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of the trade-offs that no other one beats in size and error, by ascending size."""
    order = np.lexsort((errors, sizes))
    least = np.minimum.accumulate(errors[order])
    better = np.ones(order.size, bool)
    better[1:] = errors[order][1:] < least[:-1]
    return np.asarray(order[better])


def _thinned(sizes: NDArray[np.int64], kept: NDArray[np.int64]) -> NDArray[np.int64]:
    """The trade-off of least error in each equal step of size, and the smallest of all."""
    if kept.size <= POINTS:
        return kept
    found = sizes[kept]
    steps = (found - found[0]) * (POINTS - 1) // max(int(found[-1] - found[0]), 1)
    last = np.append(steps[1:] != steps[:-1], True)
    last[0] = True
    return np.asarray(kept[last])
