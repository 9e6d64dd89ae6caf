"""The search: settings per layer from the frontier, tried on the whole model until they fit.

The frontier adds up what each layer does alone. On the whole model layers interact, learning
mends a part, and quantized activations cost something themselves: what is measured there moves
the next choice along the frontier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from onnxq.search.allocation import Frontier
from onnxq.search.goal import Goal, allowed_error, meets, points_per_nat
from onnxq.search.table import Effect, Measure, Setting

MOST_TRIALS = 7
"""Whole models tried at most."""

CLOSE = 0.015
"""Relative difference of sizes that is not worth another trial."""

STEPS_UP, STEPS_DOWN = (1.15, 4.0), (0.25, 0.7)
"""Factors by which the error may grow after a trial that met the goal, and shrink after another."""


@dataclass(frozen=True)
class Trial:
    """One allocation, measured on the whole model.

    Attributes:
        point: its place on the frontier.
        predicted: the sum of its layers' errors.
        effect: of the whole model on held-back samples, size in bytes of the file.
    """

    point: int
    predicted: float
    effect: Effect


class Workshop(Protocol):
    """Builds and measures whole models."""

    def trial(self, settings: Sequence[Setting]) -> Effect:
        """Build with these settings, learn a little, measure; size in bytes of the file."""

    def file_size(self, settings: Sequence[Setting]) -> int:
        """Bytes of the file with these settings; nothing is learned."""

    def has_time(self) -> bool:
        """Whether the clock leaves time for a further trial."""


@dataclass
class Search:
    """One search along a frontier.

    Attributes:
        frontier: of the sweep.
        measure: what its errors are.
        goal: what is looked for.
        workshop: builds and measures.
        trials: whole models measured so far.
        cut_short: whether the clock ended the search.
    """

    frontier: Frontier
    measure: Measure
    goal: Goal
    workshop: Workshop
    trials: list[Trial] = field(default_factory=list)
    cut_short: bool = False

    def run(self) -> Trial:
        """The trial that meets the goal best, or comes nearest to it."""
        if self.goal.max_size is not None:
            return self._within_size(self.goal.max_size)
        assert self.goal.max_drop is not None
        return self._within_drop(self.goal.max_drop)

    def _try(self, point: int) -> Trial:
        effect = self.workshop.trial(self.frontier.settings(point))
        trial = Trial(point, float(self.frontier.errors[point]), effect)
        self.trials.append(trial)
        return trial

    @property
    def slope(self) -> float:
        """Points of drop per nat, by all trials."""
        return points_per_nat(trial.effect for trial in self.trials)

    def met(self, trial: Trial) -> bool:
        """Whether a trial meets the goal, by what is known now."""
        return meets(trial.effect, self.goal, self.slope)

    def _within_size(self, most: int) -> Trial:
        """The most exact allocation whose file is small enough: the frontier knows no headers."""
        headers, point = 0, 0
        for _ in range(MOST_TRIALS):
            found = self.frontier.within_size(most - headers)
            point = 0 if found is None else found
            size = self.workshop.file_size(self.frontier.settings(point))
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
            if not self.workshop.has_time():
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
        """The point whose error, by what this trial was like, just meets the goal."""
        factor = allowed_error(most, self.measure, self.slope) / max(trial.effect.error, 1e-12)
        least, largest = STEPS_UP if self.met(trial) else STEPS_DOWN
        error = trial.predicted * min(max(factor, least), largest)
        low, high = self._bracket()
        if low is not None and high is not None:
            # Away from both ends, or the search would creep.
            width = high / max(low, 1e-12)
            error = min(max(error, low * width**0.25), low * width**0.75)
        return self._point(error)

    def _bracket(self) -> tuple[float | None, float | None]:
        """The largest error that met the goal, and the smallest above it that didn't."""
        low = max((t.predicted for t in self.trials if self.met(t)), default=None)
        missed = [t.predicted for t in self.trials if not self.met(t)]
        return low, min((e for e in missed if low is None or e > low), default=None)

    def _is_settled(self, point: int) -> bool:
        """Whether the next trial would be one that was tried, or hardly smaller than the best."""
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
