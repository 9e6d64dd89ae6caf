"""The training loop of a float student, and its budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxq.distillation.network import BatchStatistics
from onnxq.engine import Engine
from onnxq.options.recipe import Recipe
from onnxq.runtime.dataset import Dataset
from onnxq.runtime.session import Arrays
from onnxq.train.augment import Transform
from onnxq.train.budget import SHARDS, Budget, shard_size
from onnxq.train.checkpoint import Checkpoint
from onnxq.train.held_out import HeldOut, Score, TrainingHistory
from onnxq.train.loop import Loop
from onnxq.train.objective import Objective

GROUP = "weights"
"""What all values are: under one cosine, with one learning rate."""


@dataclass
class Distilled(TrainingHistory):
    """The result of the training.

    Attributes:
        values: the best parameters and statistics, by name.
        start_agreement: percentage of held-out samples on which student and teacher decided alike
            before; None where they do not decide.
    """

    values: Arrays = field(kw_only=True)
    start_agreement: float | None = None


class FloatValues:
    """Weights, biases and scales, trained directly.

    Attributes:
        values: the parameters by name, float32.
        groups: a single group.
    """

    def __init__(self, start: Mapping[str, np.ndarray]) -> None:
        self.values: Arrays = {name: np.array(array, np.float32) for name, array in start.items()}
        self.groups = dict.fromkeys(self.values, GROUP)

    def project(self) -> None:
        """Does nothing: the values have no bounds."""

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        """Set every value, in place."""
        for name, value in self.values.items():
            value[...] = values[name]

    def real_rates(self) -> dict[str, float | np.ndarray]:
        """1 for each: the values are the real parameters."""
        return dict.fromkeys(self.values, 1.0)


class FloatTraining(Loop[Distilled]):
    """One training run of a float student.

    BatchNormalization uses the statistics of each shard during training. After each epoch the
    statistics are measured, and the model is evaluated as it would be written.

    Args:
        engine: of the training graph with the loss.
        train: its feeds on the training slice.
        held_out: evaluates the inference graph.
        statistics: measures the statistics of the current weights.
        objective: the loss.
        start: the parameters.
        known: their statistics; None measures them.
        budget: how long and how fast.
        checkpoint: None keeps none.
        transform: how the training samples change in each epoch; None leaves them unchanged.
    """

    def __init__(
        self,
        engine: Engine,
        train: Dataset,
        held_out: HeldOut,
        statistics: BatchStatistics,
        objective: Objective,
        start: Mapping[str, np.ndarray],
        known: Mapping[str, np.ndarray] | None,
        budget: Budget,
        checkpoint: Checkpoint | None = None,
        transform: Transform | None = None,
    ) -> None:
        self._held_out, self._statistics = held_out, statistics
        trained = FloatValues(start)
        measured = statistics.measure(trained.values) if known is None else dict(known)
        self._now: Arrays = {**_copied(trained.values), **measured}
        scored = self._judge_taken()
        history = Distilled(
            scored.score,
            scored.score,
            unit=objective.unit,
            values=self._now,
            start_agreement=scored.agreement,
        )
        super().__init__(
            engine, train, objective, trained, budget, scored, history, checkpoint, transform,
            whole_shards=True,
        )  # fmt: skip

    def _parameters(self) -> Arrays:
        return self._trained.values

    def _chained(self, found: Mapping[str, np.ndarray]) -> Arrays:
        return dict(found)

    def _take(self) -> None:
        values = self._trained.values
        self._now = {**_copied(values), **self._statistics.measure(values)}

    def _judge_taken(self) -> Score:
        scored = self._held_out.evaluate(self._now)
        # Anything is better than what is not a number.
        return scored if math.isfinite(scored.score) else Score(math.inf, scored.agreement)

    def _keep(self) -> None:
        self._result.values = self._now


def _copied(arrays: Mapping[str, np.ndarray]) -> Arrays:
    return {name: array.copy() for name, array in arrays.items()}


RATE = 1e-2
"""Adam's, at the start of its cosine."""
EPOCHS, STEPS = 40, 600
"""Passes over the samples, and steps at least, however few the samples are."""
SHARD_SIZE = 32
"""Samples that BatchNormalization takes its statistics from, where memory allows; two such
shards are a batch."""


def make_budget(recipe: Recipe, student: ir.Model, train: Dataset, max_seconds: float) -> Budget:
    """The budget of a recipe, with the method's own values where the recipe has none.

    Args:
        recipe: the options.
        student: gives the memory of a shard.
        train: the training slice.
        max_seconds: the clock's limit.
    """
    shard = recipe.batch_size or shard_size(student, SHARD_SIZE)
    size = SHARDS * (shard if train.batch is None else 1)
    steps = -(-len(train) // size)
    return Budget(
        epochs=recipe.epochs or max(EPOCHS, -(-STEPS // steps)),
        lr=RATE if recipe.lr is None else recipe.lr,
        loss=recipe.loss,
        shard_size=shard,
        max_seconds=max_seconds,
        seed=recipe.seed,
        engine=recipe.engine,
    )
