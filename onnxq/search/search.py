"""The search: trials of whole models along a frontier until they fit the goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from onnxq.options.recipe import Recipe
from onnxq.search.goal import (
    Frontier,
    Goal,
    allowed_error,
    drop_of,
    expected_drop,
    meets,
    points_per_nat,
)
from onnxq.search.table import Effect, Measure, Row, Setting, SweepTable

MOST_TRIALS = 7
"""Most trials."""

CLOSE = 0.015
"""Relative difference of sizes that is not worth another trial."""

STEPS_UP, STEPS_DOWN = (1.15, 4.0), (0.25, 0.7)
"""Least and largest factor of the error after a trial that met the goal, and after any other."""


@dataclass(frozen=True)
class Trial:
    """One allocation, measured as a whole model.

    Attributes:
        point: its index on the frontier.
        predicted: the sum of its layers' errors.
        effect: of the whole model on held-out samples; its size is that of the file.
    """

    point: int
    predicted: float
    effect: Effect


class Evaluator(Protocol):
    """The interface to build and measure whole models."""

    def trial(self, settings: Sequence[Setting]) -> Effect:
        """Build, train briefly and measure; the effect's size is that of the file."""

    def file_size(self, settings: Sequence[Setting]) -> int:
        """Bytes of the file with these settings; nothing is trained."""

    def has_time(self) -> bool:
        """Whether there is time for another trial."""


@dataclass
class Search:
    """One search along a frontier.

    Attributes:
        frontier: of the sweep.
        measure: the kind of its errors, see `SweepTable.measure`.
        goal: the target.
        evaluator: builds and measures.
        trials: whole models measured so far.
        cut_short: whether the time ran out.
    """

    frontier: Frontier
    measure: Measure
    goal: Goal
    evaluator: Evaluator
    trials: list[Trial] = field(default_factory=list)
    cut_short: bool = False

    def run(self) -> Trial:
        """The trial that meets the goal best, or comes nearest to it."""
        if self.goal.max_size is not None:
            return self._within_size(self.goal.max_size)
        assert self.goal.max_drop is not None
        return self._within_drop(self.goal.max_drop)

    def _try(self, point: int) -> Trial:
        effect = self.evaluator.trial(self.frontier.settings(point))
        trial = Trial(point, float(self.frontier.errors[point]), effect)
        self.trials.append(trial)
        return trial

    @property
    def slope(self) -> float:
        """Estimated drop per KL divergence, by all trials."""
        return points_per_nat(trial.effect for trial in self.trials)

    def met(self, trial: Trial) -> bool:
        """Whether a trial meets the goal, by all trials so far."""
        return meets(trial.effect, self.goal, self.slope)

    def _within_size(self, most: int) -> Trial:
        """The allocation of least error whose whole file is small enough.

        The frontier counts bytes of weights; the rest of a file is measured here.
        """
        headers, point = 0, 0
        for _ in range(MOST_TRIALS):
            found = self.frontier.within_size(most - headers)
            point = 0 if found is None else found
            size = self.evaluator.file_size(self.frontier.settings(point))
            if size <= most or point == 0:
                break
            headers = max(headers + 1, size - int(self.frontier.sizes[point]))
        return self._try(point)

    def _within_drop(self, most: float) -> Trial:
        point = self._point(allowed_error(most, self.measure))
        while len(self.trials) < MOST_TRIALS:
            trial = self._try(point)
            if point == self._most_exact and not self.met(trial):
                break
            point = self._next(trial, most)
            if self._is_settled(point):
                break
            if not self.evaluator.has_time():
                self.cut_short = True
                break
        return self._best()

    @property
    def _most_exact(self) -> int:
        return self.frontier.sizes.size - 1

    def _point(self, error: float) -> int:
        found = self.frontier.within_error(error)
        return self._most_exact if found is None else found

    def _next(self, trial: Trial, most: float) -> int:
        """The point of the frontier that should just meet the goal, by the ratio of this trial."""
        factor = allowed_error(most, self.measure, self.slope) / max(trial.effect.error, 1e-12)
        low, high = self._bracket()
        if low is not None and high is not None:
            # Away from both ends, or the search would creep.
            width = high / max(low, 1e-12)
            error = trial.predicted * factor
            return self._point(min(max(error, low * width**0.25), low * width**0.75))
        least, largest = STEPS_UP if self.met(trial) else STEPS_DOWN
        return self._point(trial.predicted * min(max(factor, least), largest))

    def _bracket(self) -> tuple[float | None, float | None]:
        """The largest error that met the goal, and the smallest above it that didn't."""
        low = max((t.predicted for t in self.trials if self.met(t)), default=None)
        missed = [t.predicted for t in self.trials if not self.met(t)]
        return low, min((e for e in missed if low is None or e > low), default=None)

    def _is_settled(self, point: int) -> bool:
        """Whether the next trial was made already, or is hardly smaller than the best."""
        if any(trial.point == point for trial in self.trials):
            return True
        best = self._best()
        size = int(self.frontier.sizes[point])
        return self.met(best) and size > (1 - CLOSE) * int(self.frontier.sizes[best.point])

    def _best(self) -> Trial:
        met = [trial for trial in self.trials if self.met(trial)]
        if met:
            return min(met, key=lambda trial: trial.effect.size)
        return min(self.trials, key=lambda trial: trial.effect.error)


FRONTIER_POINTS = 24
"""Points of the frontier that a report shows."""


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        recipe: the options, with each layer's setting as an override.
        goal: the target.
        table: of the sweep.
        frontier: the best trade-offs.
        rows: the layers that were searched, in the order of `settings`.
        settings: their settings.
        trials: whole models that were measured, in order.
        best: the chosen trial.
        met: whether it meets the goal.
        slope: estimated drop per KL divergence, by all trials.
        cut_short: whether the time ran out.
    """

    recipe: Recipe
    goal: Goal
    table: SweepTable
    frontier: Frontier
    rows: Sequence[Row]
    settings: Sequence[Setting]
    trials: Sequence[Trial]
    best: Trial
    met: bool
    slope: float
    cut_short: bool = False

    def to_fields(self) -> dict[str, Any]:
        """The result as JSON fields; drops in points, or RMSE in percent without decisions."""
        return {
            "max_drop": self.goal.max_drop,
            "max_size": self.goal.max_size,
            "met": self.met,
            "missed": self.missed(),
            "points_per_nat": self.slope,
            "measure": self.table.measure,
            "settings": {
                row.name: setting.label
                for row, setting in zip(self.rows, self.settings, strict=True)
            },
            "trials": [self._trial_fields(trial) for trial in self.trials],
            "frontier": self._frontier_fields(),
            "sweep": self.table.to_fields(),
        }

    def _frontier_fields(self) -> list[dict[str, float]]:
        # The frontier counts weights: what a file holds beside them is the same everywhere.
        headers = self.best.effect.size - int(self.frontier.sizes[self.best.point])
        sizes, errors = self.frontier.sizes + headers, self.frontier.errors
        steps = np.linspace(0, sizes.size - 1, min(FRONTIER_POINTS, sizes.size))
        return [
            {
                "bytes": int(sizes[i]),
                "error": float(errors[i]),
                "drop": self._expected(float(errors[i])),
            }
            for i in np.unique(steps.astype(np.int64))
        ]

    def notes(self) -> list[str]:
        """Notes for the user."""
        effect = self.best.effect
        notes = [missed] if (missed := self.missed()) else []
        if self.cut_short:
            notes.append(
                f"the clock ended the search after {len(self.trials)} trials; a longer one "
                "(--max-minutes) may find a smaller file"
            )
        most, error = self.goal.max_drop, effect.drop_error
        if most is not None and error is not None and error > most / 2:
            notes.append(
                f"the estimated drop has a standard error of {error:.2f} points on "
                "the held-out samples; more samples (--samples) make it sharper"
            )
        return notes

    def missed(self) -> str:
        """That the target was not met, and what came nearest; '' where it was met."""
        if self.met:
            return ""
        return f"the target {self._target()} was not met: {self._nearest()}"

    def _target(self) -> str:
        if self.goal.max_size is not None:
            return f"of {self.goal.max_size:,} bytes"
        unit = "points" if self.table.measure == "kl" else "% RMSE of the outputs"
        return f"of {self.goal.max_drop:g} {unit}"

    def _nearest(self) -> str:
        effect = self.best.effect
        if self.goal.max_size is not None:
            return f"the smallest file has {effect.size:,} bytes, which is written"
        unit = "points" if self.table.measure == "kl" else "%"
        return (
            f"the nearest is an estimated {drop_of(effect):.2f} {unit} at {effect.size:,} bytes, "
            "which is written; give more samples (--samples), or a higher target"
        )

    def _expected(self, error: float) -> float:
        """The expected drop for a sum of the layers' errors, after training."""
        known = None if self.table.measure == "error" else 0.0
        return expected_drop(Effect(0, error, known), self.slope)

    def _trial_fields(self, trial: Trial) -> dict[str, Any]:
        effect = trial.effect
        return {
            "bytes": effect.size,
            "predicted": trial.predicted,
            "error": effect.error,
            "drop": drop_of(effect),
            "drop_error": effect.drop_error,
            "expected_drop": expected_drop(effect, self.slope),
        }
