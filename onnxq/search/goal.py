"""What a search looks for: the smallest model within a drop, or the best one within a size."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from onnxq.recipe import Recipe
from onnxq.search.table import Effect, Measure

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
