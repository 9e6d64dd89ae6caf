"""How long and how fast a float student is trained."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.learn.budget import Budget
from onnxq.learn.loop import SHARDS
from onnxq.learn.memory import shard_size
from onnxq.learn.teacher import Targeted
from onnxq.recipe import Recipe

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
