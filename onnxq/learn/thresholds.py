"""Learn threshold scales (FAT) and centroids: RMSE of the logits, Adam, cosine annealing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxq.learn.checkpoint import Checkpoint
from onnxq.learn.codebook_tables import restored
from onnxq.learn.engine import Engine
from onnxq.learn.held_back import HeldBack
from onnxq.learn.loss import LOSS, relative_rmse
from onnxq.learn.optimizer import Adam
from onnxq.learn.schedule import CosineRestarts
from onnxq.learn.teacher import TeacherOutputs
from onnxq.learn.threshold_scales import ThresholdScales
from onnxq.progress import Progress
from onnxq.rewrite.quantizers import Quantizers, student_feeds
from onnxq.rewrite.student import Student

SHARDS = 2
"""Parts of a batch; fixed, so that sums come out the same on any number of cores."""
RESTART_EPOCHS = 4
"""Epochs between restarts of the learning rate and of the optimizer's state."""


@dataclass(frozen=True)
class Budget:
    """How long and how fast to learn.

    Attributes:
        epochs: passes over the training slice, at most.
        lr: the learning rate at each restart, in units of alpha.
        shard_size: samples in one session run; a batch has two shards.
        max_seconds: the clock's limit.
        seed: of the order of the samples.
    """

    epochs: int = 8
    lr: float = 0.002
    shard_size: int = 16
    max_seconds: float = 600.0
    seed: int = 0


@dataclass
class Learned:
    """What came out.

    Attributes:
        quantizers: the best numbers found, by the held-back score.
        start_score: the held-back relative RMSE before.
        score: the held-back relative RMSE of `quantizers`.
        epoch: the epoch that gave them; 0 means that the start was kept.
        history: the held-back score after each epoch.
        seconds: time spent.
        images: samples seen in training steps.
    """

    quantizers: Quantizers
    start_score: float
    score: float
    epoch: int = 0
    history: list[float] = field(default_factory=list)
    seconds: float = 0.0
    images: int = 0

    @property
    def improved(self) -> bool:
        """Whether learning beat its starting point."""
        return self.epoch > 0


class ThresholdLearning:
    """One run of threshold learning.

    Args:
        student: the student.
        loss_model: the student with the loss attached.
        train: the teacher's outputs on the training slice.
        held_back: the judge.
        start: the numbers to start from.
        scales: what is trained, from those numbers on.
        budget: how long and how fast.
        checkpoint: where to keep the state; None keeps none.
    """

    def __init__(
        self,
        student: Student,
        loss_model: ir.Model,
        train: TeacherOutputs,
        held_back: HeldBack,
        start: Quantizers,
        scales: ThresholdScales,
        budget: Budget,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self._student = student
        self._train = train
        self._held_back = held_back
        self._budget = budget
        self._checkpoint = checkpoint
        self._scales = scales
        self._engine = Engine(loss_model, self._scales.parameter_names(), LOSS)
        self._adam = Adam(budget.lr)
        steps = -(-train.positions // self._batch)
        self._schedule = CosineRestarts(budget.lr, RESTART_EPOCHS * steps)
        score = held_back.score(self._feeds(start))
        self._result = Learned(start, score, score)

    @property
    def _batch(self) -> int:
        return SHARDS * self._budget.shard_size

    def _feeds(self, quantizers: Quantizers) -> dict[str, np.ndarray]:
        return student_feeds(self._student.plan, quantizers, self._student.sources)

    def run(self, progress: Progress, resume: bool = False) -> Learned:
        """Train until the epochs or the clock run out; the best held-back score is kept."""
        began = time.monotonic()
        result = self._result
        first = self._load() if resume else 0
        positions = self._train.positions
        progress.start("learn thresholds", self._budget.epochs * positions)
        progress.at(first * positions, self._text())
        for epoch in range(first, self._budget.epochs):
            if time.monotonic() - began > self._budget.max_seconds:
                break
            self._epoch(epoch, progress, began)
            self._judge(epoch + 1)
            self._save(epoch + 1)
        result.seconds += time.monotonic() - began
        progress.finish()
        return result

    def _epoch(self, epoch: int, progress: Progress, began: float) -> None:
        positions = self._train.positions
        order = np.random.default_rng((self._budget.seed, epoch)).permutation(positions)
        stream = self._train.batches(order, self._budget.shard_size)
        steps = -(-positions // self._batch)
        done = 0
        for step in range(steps):
            shards = [s for _, s in zip(range(SHARDS), stream, strict=False)]
            count = min(self._batch, positions - done)
            self._step(epoch * steps + step, shards, count)
            done += count
            self._result.images += count
            if time.monotonic() - began > self._budget.max_seconds:
                break
            progress.at(epoch * positions + done, self._text())

    def _step(self, step: int, shards: list[dict[str, np.ndarray]], count: int) -> None:
        if step and self._schedule.restarts_at(step):
            self._adam.reset()
        self._adam.lr = self._schedule.lr(step)
        parameters = self._feeds(self._scales.quantizers())
        biases = {k: v for k, v in parameters.items() if k not in self._engine.trainable}
        feeds = [{**shard, **biases} for shard in shards]
        loss, found = self._engine.gradients(parameters, feeds)
        rmse = relative_rmse(loss, count)
        # d RMSE = d loss / (2 * RMSE * samples)
        factor = np.float32(1.0 / max(2.0 * rmse * count, 1e-12))
        gradients = {k: g * factor for k, g in self._scales.gradients(found).items()}
        self._adam.step(self._scales.values, gradients)
        self._scales.project()

    def _judge(self, epoch: int) -> None:
        quantizers = self._scales.quantizers()
        score = self._held_back.score(self._feeds(quantizers))
        self._result.history.append(score)
        if score < self._result.score:
            self._result.quantizers, self._result.score = quantizers, score
            self._result.epoch = epoch

    def _text(self) -> str:
        return (
            f"held-back error {self._result.score:.4f}, at the start {self._result.start_score:.4f}"
        )

    def _save(self, epoch: int) -> None:
        if self._checkpoint is None:
            return
        best = self._result.quantizers
        arrays = {
            "epoch": np.array(epoch),
            "best_epoch": np.array(self._result.epoch),
            "score": np.array(self._result.score),
            "history": np.array(self._result.history),
            **{f"value/{k}": v for k, v in self._scales.values.items()},
            **{f"adam/{k}": v for k, v in self._adam.state().items()},
            **{f"range/{k}": np.array(v) for k, v in best.ranges.items()},
            **{f"threshold/{k}": v for k, v in best.thresholds.items()},
            **{f"table/{k}": v.centroids for k, v in best.codebooks.items()},
        }
        self._checkpoint.save(arrays)

    def _load(self) -> int:
        """Put the saved state back; the number of epochs already done."""
        arrays = self._checkpoint.load() if self._checkpoint else None
        if arrays is None:
            return 0
        parts = _by_prefix(arrays)
        for key, value in parts["value"].items():
            self._scales.values[key][...] = value
        self._adam.load_state(parts.get("adam", {}))
        self._result.history = arrays["history"].tolist()
        self._result.score = float(arrays["score"])
        self._result.epoch = int(arrays["best_epoch"])
        ranges = {k: (float(v[0]), float(v[1])) for k, v in parts.get("range", {}).items()}
        best = self._result.quantizers.with_ranges(ranges)
        best = best.with_codebooks(restored(best.codebooks, parts.get("table", {})))
        self._result.quantizers = best.with_thresholds(parts.get("threshold", {}))
        return int(arrays["epoch"])


def _by_prefix(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        prefix, slash, rest = name.partition("/")
        if slash:
            parts.setdefault(prefix, {})[rest] = array
    return parts
