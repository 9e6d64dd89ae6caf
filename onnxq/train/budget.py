"""The training budget: how long, how fast, by which optimizer, how many samples at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir
import psutil

from onnxq.normalise.infer_shapes import InferShapes
from onnxq.options.recipe import Recipe
from onnxq.options.table import AUTO, Effort, EngineName, Loss, OptimizerName
from onnxq.runtime.dataset import Dataset, first
from onnxq.runtime.session import Arrays, Feeds
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

SHARD_SIZE = 16
"""Samples in one session run, where memory allows."""
SHARDS = 2
"""Session runs in a batch of such; fixed, so that sums are the same on any number of cores."""

EPOCHS = 8
"""Passes over the samples for thresholds, codebooks and float layers (FAT: 6 to 8)."""
LONG_EPOCHS, LONG_STEPS = 16, 1500
"""Passes for weights and step sizes, and the least number of optimizer steps."""
DEFAULT_LONG_EPOCHS, DEFAULT_LONG_STEPS = 4, 500
"""The same where the effort is not 'max'."""
LONG = frozenset({"weights", "steps"})
"""Options of `learn` that need many steps."""

LOOK_STEPS = 8
"""Optimizer steps between two held-out scores, where training stops when it gains little."""
LEAST_GAIN = 0.005
"""Share of the held-out score that a cycle of the rate has to gain for each forward pass of the
samples: after a cycle that gains less, training stops. Each is twice as long as the one before."""
SHORT_PASSES = 12.0
"""Forward passes that thresholds, codebooks and float layers take at most, unless the effort is
'max'."""
EPOCH_PASSES = 3
"""Forward passes that an epoch counts as: one forward, and one backward that counts as two."""


@dataclass(frozen=True)
class Budget:
    """How long and how fast to train.

    Attributes:
        epochs: passes over the training slice; None means the method's own number.
        lr: the learning rate of all values, or one per option of `learn`; None means the defaults.
        optimizer: Adam with relative rates, or gradient descent with momentum 0.9 and absolute
            rates.
        loss: the loss option of a recipe.
        shard_size: samples in one session run.
        shards: session runs in a batch.
        max_seconds: time limit.
        least_seconds: time without which nothing is trained at all.
        seed: of the order of the samples.
        engine: what computes gradients.
        effort: 'max' takes all epochs of the method; otherwise there are fewer steps for weights
            and steps, and other training stops where it gains little for its passes. Without
            meaning where `epochs` is set.
        most_passes: forward passes that training which stops early takes at most.
    """

    epochs: int | None = None
    lr: float | Mapping[str, float] | None = None
    optimizer: OptimizerName = "adam"
    loss: Loss = "outputs"
    shard_size: int = 16
    shards: int = SHARDS
    max_seconds: float = 600.0
    least_seconds: float = 0.0
    seed: int = 0
    engine: EngineName = AUTO
    effort: Effort = "max"
    most_passes: float = SHORT_PASSES

    def passes(self, groups: frozenset[str], steps: int) -> int:
        """The number of epochs, where one epoch has so many optimizer steps."""
        if self.epochs is not None:
            return self.epochs
        if not groups & LONG:
            return EPOCHS
        if self.effort == "max":
            return max(LONG_EPOCHS, -(-LONG_STEPS // steps))
        return max(DEFAULT_LONG_EPOCHS, -(-DEFAULT_LONG_STEPS // steps))

    def stops_early(self, groups: frozenset[str]) -> bool:
        """Whether training of these groups stops where it gains little for its passes.

        Weights and steps don't: only the low rates at the end of a long run gain anything.
        """
        return self.epochs is None and self.effort != "max" and not groups & LONG

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


def recipe_budget(
    recipe: Recipe, shard_size: int, max_seconds: float, least_seconds: float = 0.0
) -> Budget:
    """The budget of a recipe.

    Args:
        recipe: the options.
        shard_size: samples in one session run.
        max_seconds: time limit.
        least_seconds: time without which nothing is trained at all.
    """
    return Budget(
        epochs=recipe.epochs,
        lr=recipe.lr,
        optimizer=recipe.optimizer,
        loss=recipe.loss,
        shard_size=shard_size,
        shards=SHARDS if recipe.batch_size else max(SHARDS, SHARDS * SHARD_SIZE // shard_size),
        max_seconds=max_seconds,
        least_seconds=least_seconds,
        seed=recipe.seed,
        engine=recipe.engine,
        effort=recipe.effort,
    )


def fix_sizes(model: ir.Model, feeds: Feeds) -> ir.Model:
    """A copy of the model whose inputs have the sizes of these feeds; the batch size stays free.

    Gradients of pooling and resizing need sizes that a model for any image size does not state.
    Where all sizes are known, the model itself is returned.

    Args:
        model: a graph for samples of one shape; it isn't changed.
        feeds: one batch by input name; other inputs keep their shapes.
    """
    if all(_is_sized(value) for value in model.graph.inputs if value.name in feeds):
        return model
    copy = model.clone(deep_copy=False)
    for value in copy.graph.inputs:
        if value.name in feeds and value.shape is not None:
            value.shape = ir.Shape([value.shape[0], *feeds[str(value.name)].shape[1:]])
    for node in copy.graph:
        for value in node.outputs:
            # Inference keeps what it finds, unknown dimensions included.
            value.shape = None
    return InferShapes()(copy).model


def sized_for(model: ir.Model, samples: Dataset) -> ir.Model:
    """The graph with the sizes of the samples; samples that are stacked have one shape."""
    return model if samples.batch is not None else fix_sizes(model, first(samples))


def _is_sized(value: ir.Value) -> bool:
    dims = value.shape or ()
    return all(isinstance(dim, int) for dim in dims[1:])


COPIES = 8
"""Arrays per activation in a training step: values, quantized values, masks and gradients."""
SESSIONS = 2
STEP_BYTES = 3 * 2**29
"""Bytes that training steps of a student may take, by this count: more samples at a time are no
faster (Tiny Darknet: 2, 4 and 16 take 7.9, 9.0 and 9.6 CPU seconds, and 1.0, 1.4 and 4.5 GB)."""


def shard_size(
    model: ir.Model, most: int = SHARD_SIZE, copies: int = COPIES, limit: int | None = None
) -> int:
    """The number of samples in one run of a training session.

    It is `most`, or less where two sessions of that size would take more bytes than `limit`, or
    more than half of the free memory. Unknown dimensions count as 1.
    """
    free = psutil.virtual_memory().available // 2
    free = free if limit is None else min(free, limit)
    fits = free // max(sample_bytes(model) * copies * SESSIONS, 1)
    return int(max(1, min(most, fits)))


def sample_bytes(model: ir.Model) -> int:
    """Bytes of one sample's activations in float32; unknown dimensions count as 1."""
    return 4 * sum(_elements(v) for node in model.graph for v in node.outputs)


def _elements(value: ir.Value) -> int:
    if value.shape is None:
        return 0
    count = 1
    for dim in value.shape.dims[1:]:
        count *= dim if isinstance(dim, int) else 1
    return count
