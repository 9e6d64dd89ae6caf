"""The training budget: how long, how fast and by which optimizer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnxq.options.recipe import Recipe
from onnxq.options.table import Loss, OptimizerName
from onnxq.runtime.session import Arrays
from onnxq.train.optimizer import SGD, Adam, Optimizer, Rates


class Values(Protocol):
    """The values that a training run changes.

    Attributes:
        values: float32 arrays by key, changed in place.
        groups: the option of `learn` that each value belongs to, by key; it has a learning rate of
            its own.
    """

    values: Arrays
    groups: dict[str, str]

    def project(self) -> None:
        """Clip every value to its bounds, in place."""

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        """Set every value, in place."""

    def real_rates(self) -> Mapping[str, float | np.ndarray]:
        """The rate by key with which gradient descent moves the real parameter at rate 1."""


ADAM_RATES: Mapping[str, float] = {
    "thresholds": 0.002,
    "steps": 0.006,
    "weights": 0.01,
    "codebooks": 0.002,
    "float-layers": 0.002,
    "biases": 0.002,
}
"""Relative rates: shares of a threshold, of a step, or of the typical weight of a layer."""
SGD_RATE = 0.001
"""An absolute rate (DFQF)."""

EPOCHS = 8
"""Passes over the samples for thresholds, codebooks and float layers (FAT: 6 to 8)."""
LONG_EPOCHS, LONG_STEPS = 16, 1500
"""Passes for weights and step sizes, and the least number of optimizer steps."""
LONG = frozenset({"weights", "steps"})
"""Options of `learn` that need many steps."""


@dataclass(frozen=True)
class Budget:
    """How long and how fast to train.

    Attributes:
        epochs: passes over the training slice; None means the method's own number.
        lr: the learning rate of all values, or one per option of `learn`; None means the defaults.
        optimizer: Adam with relative rates, or gradient descent with momentum 0.9 and absolute
            rates.
        loss: the loss option of a recipe.
        shard_size: samples in one session run; a batch has two shards.
        max_seconds: time limit.
        seed: of the order of the samples.
    """

    epochs: int | None = None
    lr: float | Mapping[str, float] | None = None
    optimizer: OptimizerName = "adam"
    loss: Loss = "outputs"
    shard_size: int = 16
    max_seconds: float = 600.0
    seed: int = 0

    def passes(self, groups: frozenset[str], steps: int) -> int:
        """The number of epochs, where one epoch has so many optimizer steps."""
        if self.epochs is not None:
            return self.epochs
        return max(LONG_EPOCHS, -(-LONG_STEPS // steps)) if groups & LONG else EPOCHS

    def distils(self) -> bool:
        """Whether a classifier's probabilities are matched instead of its logits.

        Logits say more: where the original is sure, all but one of its probabilities are close to
        0.
        """
        return self.loss == "distillation"

    def rate(self, group: str) -> float:
        """The learning rate of one option of `learn`."""
        default = SGD_RATE if self.optimizer == "sgd" else ADAM_RATES[group]
        if isinstance(self.lr, Mapping):
            return self.lr.get(group, default)
        return default if self.lr is None else self.lr

    def make_optimizer(self, trained: Values) -> Optimizer:
        """An optimizer with `lr` 1, under which every group has its full learning rate."""
        rates = {key: self.rate(group) for key, group in trained.groups.items()}
        if self.optimizer == "adam":
            return Adam(1.0, rates=rates)
        real: Rates = {key: rates[key] * unit for key, unit in trained.real_rates().items()}
        return SGD(1.0, rates=real)


def recipe_budget(recipe: Recipe, shard_size: int, max_seconds: float) -> Budget:
    """The budget of a recipe.

    Args:
        recipe: the options.
        shard_size: samples in one session run.
        max_seconds: time limit.
    """
    return Budget(
        epochs=recipe.epochs,
        lr=recipe.lr,
        optimizer=recipe.optimizer,
        loss=recipe.loss,
        shard_size=shard_size,
        max_seconds=max_seconds,
        seed=recipe.seed,
    )


class Clock:
    """The time that a run may spend on generating samples and on training; nothing else counts.

    Args:
        minutes: the time limit for both.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds, self._spent = 60 * minutes, 0.0

    def left(self, share: float = 1.0) -> float:
        """Seconds left of a share of the time."""
        return max(0.0, share * self._seconds - self._spent)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of a block."""
        began = time.monotonic()
        yield
        self._spent += time.monotonic() - began
