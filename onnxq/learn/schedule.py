"""Learning-rate schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CosineRestarts:
    """Cosine annealing with warm restarts (Loshchilov and Hutter 2017, equation 5).

    lr(t) = lr_min + (base_lr - lr_min) / 2 * (1 + cos(pi t_cur / T)), where t_cur counts
    the steps since the last restart and T is the length of the cycle.

    Args:
        base_lr: rate at the start of every cycle.
        period: steps of the first cycle.
        growth: each cycle is this many times as long as the one before.
        minimum: rate that a cycle ends with.
    """

    base_lr: float
    period: int
    growth: int = 1
    minimum: float = 0.0

    def __post_init__(self) -> None:
        if self.period < 1 or self.growth < 1:
            raise ValueError(
                f"period and growth must be at least 1, found {self.period} and {self.growth}"
            )

    def lr(self, step: int) -> float:
        """The rate of a step; steps count from 0."""
        position, length = self._position(step)
        swing = 1 + math.cos(math.pi * position / length)
        return self.minimum + (self.base_lr - self.minimum) / 2 * swing

    def restarts_at(self, step: int) -> bool:
        """Whether a cycle other than the first starts with this step.

        FAT resets the optimizer's state there.
        """
        return step > 0 and self._position(step)[0] == 0

    def _position(self, step: int) -> tuple[int, int]:
        """Steps since the last restart, and the length of the cycle."""
        length = self.period
        while self.growth > 1 and step >= length:
            step -= length
            length *= self.growth
        return step % length, length
