"""What images are wanted, and what all ways of making them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.learn.memory import sample_bytes, shard_size

BATCH = 64
"""Images that share their statistics, where memory allows."""
MOST_BYTES = 2**30
"""Of the activations of such a batch; fixed, so that memory decides only where it is scarce."""
LEAST_BATCH = 8
"""Fewer have no statistics to speak of."""
COPIES = 2
"""Arrays per activation: values and gradients."""
TOGETHER = 2
"""Batches in work side by side; fixed, so that they are the same ones on any number of cores."""
TIMED_STEPS = 5
"""After which it is known how long a step takes."""

WEIGHTS: Mapping[str, float] = {"inception": 10.0, "bn": 10.0}
"""Of the losses, by kind."""


def batch_size(model: ir.Model) -> int:
    """How many images share their statistics.

    64, fewer where their activations would take more than a gigabyte, or than memory allows.
    """
    fits = MOST_BYTES // max(sample_bytes(model), 1)
    return max(2, shard_size(model, max(LEAST_BATCH, min(BATCH, fits)), COPIES))


@dataclass(frozen=True)
class Task:
    """What to make.

    Attributes:
        count: images at most.
        weights: of losses by kind, where they are not the method's own.
        seed: of the noise.
        max_seconds: how long it may take.
        method: 'generator', 'distilled' or 'auto'.
        adversarial: whether the generator is to go on learning with the student.
    """

    count: int
    weights: Mapping[str, float]
    seed: int
    max_seconds: float
    method: str = "auto"
    adversarial: bool = False

    @property
    def all_weights(self) -> dict[str, float]:
        """The weight of every loss, by kind."""
        return {**WEIGHTS, **self.weights}

    def images(self, batch: int | None) -> int:
        """How many images to make: what fills no batch of a fixed size could not be used."""
        return self.count if batch is None else max(1, self.count // batch) * batch
