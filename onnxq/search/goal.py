"""What a search looks for: the smallest model within a drop, or the best one within a size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxq.recipe import Recipe
from onnxq.search.table import Effect, Measure

DEFAULT_DROP: dict[Measure, float] = {"kl": 0.5, "error": 5.0}
"""The target of `--codebook auto` alone: points of accuracy, or RMSE of the outputs in percent."""

POINTS_PER_NAT = 25.0
"""Estimated drop over KL divergence. Measured on four models at many settings: 18 to 38."""


MOST_EXPECTED = 2.0
"""Expected over largest drop that is still taken to meet it, whatever decisions say."""


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


def meets(effect: Effect, goal: Goal, measure: Measure) -> bool:
    """Whether a whole model meets the goal.

    On few samples no decision may change although outputs are far off: a divergence that
    stands for more than `MOST_EXPECTED` times the allowed drop is too much as well.
    """
    if goal.max_size is not None:
        return effect.size <= goal.max_size
    assert goal.max_drop is not None
    if effect.drop is not None and effect.drop > goal.max_drop:
        return False
    scale = 1.0 if effect.drop is None else MOST_EXPECTED
    return expected_drop(effect.error, measure) <= scale * goal.max_drop


def expected_drop(error: float, measure: Measure) -> float:
    """The drop that an error stands for, before anything was measured on a whole model."""
    return POINTS_PER_NAT * error if measure == "kl" else 100 * math.sqrt(max(error, 0.0))


def allowed_error(drop: float, measure: Measure) -> float:
    """The inverse of `expected_drop`."""
    return drop / POINTS_PER_NAT if measure == "kl" else (drop / 100) ** 2
