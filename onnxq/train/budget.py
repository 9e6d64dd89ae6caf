"""How long, how fast and by which optimizer values are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnxq.options.table import Loss, OptimizerName
from onnxq.runtime.session import Arrays
from onnxq.train.optimizer import SGD, Adam, Optimizer, Rates


class Values(Protocol):
    """What is trained.

    Attributes:
        values: float32 arrays by key, changed in place.
        groups: what each of them is, which says its learning rate, by key.
    """

    values: Arrays
    groups: dict[str, str]

    def project(self) -> None:
        """Put every value back into its bounds, in place."""

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        """Set every value, in place."""

    def real_rates(self) -> Mapping[str, float | np.ndarray]:
        """By key, the rate of a value for which gradient descent moves the real one at 1."""


ADAM_RATES: Mapping[str, float] = {
    "thresholds": 0.002,
    "steps": 0.006,
    "weights": 0.01,
    "codebooks": 0.002,
    "float-layers": 0.002,
    "biases": 0.002,
}
"""In units of a value: shares of a threshold, a step, or the typical weight of a layer."""
SGD_RATE = 0.001
"""In real units (DFQF)."""

EPOCHS = 8
"""Passes over the samples for thresholds, tables and float layers (FAT: 6 to 8)."""
LONG_EPOCHS, LONG_STEPS = 16, 1500
"""Passes of weights and step sizes, and steps at least, however few the samples are."""
LONG = frozenset({"weights", "steps"})
"""What takes more than a few steps."""


@dataclass(frozen=True)
class Budget:
    """How long and how fast to learn.

    Attributes:
        epochs: passes over the training slice, at most; None means the method's own number.
        lr: learning rates by what is learned, or one for all; others have the defaults.
        optimizer: Adam, or plain gradient descent with momentum 0.9, whose rates are real.
        loss: what is brought closer, as in a recipe.
        shard_size: samples in one session run; a batch has two shards.
        max_seconds: the clock's limit.
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
        """Epochs to run, of so many steps each."""
        if self.epochs is not None:
            return self.epochs
        return max(LONG_EPOCHS, -(-LONG_STEPS // steps)) if groups & LONG else EPOCHS

    def distils(self) -> bool:
        """Whether a classifier's probabilities are matched, not its logits.

        Logits say more: where the original is sure, all but one of its probabilities are 0.
        """
        return self.loss == "distillation"

    def rate(self, group: str) -> float:
        """The learning rate of one option of `learn`."""
        default = SGD_RATE if self.optimizer == "sgd" else ADAM_RATES[group]
        if isinstance(self.lr, Mapping):
            return self.lr.get(group, default)
        return default if self.lr is None else self.lr

    def make_optimizer(self, trained: Values) -> Optimizer:
        """An optimizer whose `lr` is 1 at the full rate of every group."""
        rates = {key: self.rate(group) for key, group in trained.groups.items()}
        if self.optimizer == "adam":
            return Adam(1.0, rates=rates)
        real: Rates = {key: rates[key] * unit for key, unit in trained.real_rates().items()}
        return SGD(1.0, rates=real)
