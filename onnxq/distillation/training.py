"""The training of a float network: what the loop moves, how long and how fast."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxq.distillation.network import BatchStatistics
from onnxq.engine import Engine
from onnxq.options.recipe import Recipe
from onnxq.runtime.session import Arrays
from onnxq.train.augment import Changes
from onnxq.train.batch_size import shard_size
from onnxq.train.budget import Budget
from onnxq.train.checkpoint import Checkpoint
from onnxq.train.held_out import HeldOut, Score, TrainingHistory
from onnxq.train.loop import SHARDS, Loop
from onnxq.train.objective import Objective
from onnxq.train.teacher import Targeted

GROUP = "weights"
"""What all values are: under one cosine, with one learning rate."""


@dataclass
class Distilled(TrainingHistory):
    """What came out.

    Attributes:
        values: the best parameters and statistics found, by name.
        start_agreement: percentage of held-out samples on which the student decided as the
            teacher before; None where they do not decide.
    """

    values: Arrays = field(kw_only=True)
    start_agreement: float | None = None


class FloatValues:
    """Weights, biases and scales, trained as they are.

    Attributes:
        values: the parameters by name, float32.
        groups: one for all.
    """

    def __init__(self, start: Mapping[str, np.ndarray]) -> None:
        self.values: Arrays = {name: np.array(array, np.float32) for name, array in start.items()}
        self.groups = dict.fromkeys(self.values, GROUP)

    def project(self) -> None:
        """Nothing: the values have no bounds."""

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        """Set every value, in place."""
        for name, value in self.values.items():
            value[...] = values[name]

    def real_rates(self) -> dict[str, float | np.ndarray]:
        """1 each: they are real ones."""
        return dict.fromkeys(self.values, 1.0)


class FloatTraining(Loop[Distilled]):
    """One run of training of a float network.

    BatchNormalization goes by the statistics of each shard while weights are moved. What is judged
    and kept is the network as it is written, with statistics measured after each epoch.

    Args:
        engine: of the training graph with the loss.
        train: its feeds on the training slice.
        held_out: judges the inference graph.
        statistics: measures those of the weights as they are.
        objective: whose loss it is.
        start: the parameters.
        known: statistics that belong to them; None measures them.
        budget: how long and how fast.
        checkpoint: where to keep the state; None keeps none.
        changes: what becomes of the training samples in each epoch; None leaves them.
    """

    def __init__(
        self,
        engine: Engine,
        train: Targeted,
        held_out: HeldOut,
        statistics: BatchStatistics,
        objective: Objective,
        start: Mapping[str, np.ndarray],
        known: Mapping[str, np.ndarray] | None,
        budget: Budget,
        checkpoint: Checkpoint | None = None,
        changes: Changes | None = None,
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
            engine, train, objective, trained, budget, scored, history, checkpoint, changes,
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
        scored = self._held_out.judge(self._now)
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


def make_budget(recipe: Recipe, student: ir.Model, train: Targeted, spent: float) -> Budget:
    """What the recipe leaves to the method is filled in.

    Args:
        recipe: the options.
        student: whose memory is looked at.
        train: the training slice.
        spent: seconds that are gone.
    """
    shard = recipe.batch_size or shard_size(student, SHARD_SIZE)
    size = SHARDS * (shard if train.batch is None else 1)
    steps = -(-train.positions // size)
    return Budget(
        epochs=recipe.epochs or max(EPOCHS, -(-STEPS // steps)),
        lr=RATE if recipe.lr is None else recipe.lr,
        loss=recipe.loss,
        shard_size=shard,
        max_seconds=max(0.0, 60 * recipe.max_minutes - spent),
        seed=recipe.seed,
    )
