"""What a search found, as plain data for reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.recipe import Recipe
from onnxq.search.allocation import Frontier
from onnxq.search.goal import Goal, drop_of, expected_drop
from onnxq.search.search import Trial
from onnxq.search.table import Effect, Row, Setting, SweepTable

FRONTIER_POINTS = 24
"""Points of the frontier that a report shows."""


@dataclass(frozen=True)
class Found:
    """One search that is over.

    Attributes:
        recipe: the options, with the setting of each layer spelt out.
        goal: what was looked for.
        table: of the sweep.
        frontier: all best trades.
        rows: the layers that were free, in the order of `settings`.
        settings: what each of them got.
        trials: whole models that were measured, in their order.
        best: the one among them that is taken.
        met: whether it meets the goal.
        slope: points of drop per nat, by all trials.
        cut_short: whether the clock ended the search.
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
        """The search as JSON holds it; drops in points, or RMSE in percent without decisions."""
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
        """What a user should know of it, in sentences."""
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
                "the held-back samples; more samples (--samples) make it sharper"
            )
        return notes

    def missed(self) -> str:
        """That the target was not met, and what came nearest; empty where it was."""
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
        """The drop that a sum of the layers' errors stands for, learned as is expected."""
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
