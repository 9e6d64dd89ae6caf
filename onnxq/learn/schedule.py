"""Learning-rate schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CosineRestarts:
    """Cosine annealing with warm restarts (Loshchilov and Hutter 2017, equation 5).

    lr(t) = base_lr / 2 * (1 + cos(pi t_cur / T)), where t_cur counts the steps since the
    last restart and T is the length of a cycle.

    Args:
        base_lr: rate at the start of every cycle.
        period: steps of a cycle.
    """

    base_lr: float
    period: int

    def __post_init__(self) -> None:
        if self.period < 1:
            raise ValueError(f"period must be at least 1, found {self.period}")

    def lr(self, step: int) -> float:
        """The rate of a step; steps count from 0."""
        return self.base_lr / 2 * (1 + math.cos(math.pi * (step % self.period) / self.period))

    def restarts_at(self, step: int) -> bool:
        """Whether a cycle other than the first starts with this step.

        FAT resets the optimizer's state there.
        """
        return step > 0 and step % self.period == 0
