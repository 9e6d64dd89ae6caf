"""What images are wanted, and what all ways of making them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BATCH = 64
"""Images that share their statistics, where memory allows."""
TOGETHER = 2
"""Batches in work side by side; fixed, so that they are the same ones on any number of cores."""
TIMED_STEPS = 5
"""After which it is known how long a step takes."""

WEIGHTS: Mapping[str, float] = {"inception": 10.0, "bn": 10.0}
"""Of the losses, by kind."""


@dataclass(frozen=True)
class Task:
    """What to make.

    Attributes:
        count: images at most.
        weights: of losses by kind, where they are not the method's own.
        seed: of the noise.
        max_seconds: how long it may take.
        method: 'generator', 'distilled' or 'auto'.
    """

    count: int
    weights: Mapping[str, float]
    seed: int
    max_seconds: float
    method: str = "auto"
