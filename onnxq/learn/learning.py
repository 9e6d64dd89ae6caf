"""Train the values of a student: RMSE of the logits, Adam, cosine annealing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from onnxq.learn.checkpoint import Checkpoint
from onnxq.learn.engine import Engine
from onnxq.learn.frozen import Remainder
from onnxq.learn.held_back import HeldBack
from onnxq.learn.loss import LOSS, relative_rmse
from onnxq.learn.optimizer import Adam
from onnxq.learn.schedule import CosineRestarts
from onnxq.learn.trained import Trained
from onnxq.progress import Progress
from onnxq.rewrite.quantizers import Quantizers, moving_inputs, student_feeds
from onnxq.rewrite.student import Student
from onnxq.session import Arrays

SHARDS = 2
"""Parts of a batch; fixed, so that sums come out the same on any number of cores."""
RESTART_EPOCHS = 4
"""Epochs between restarts of the learning rate and of the optimizer's state."""

MUCH_WORSE = 1.1
"""Ratio to the error at the start from which, with nothing won yet, the rate is too high."""
SLOWER = 0.25
"""Factor of the rate after that."""


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
        seconds: time spent in epochs.
        images: samples seen in training steps.
        notes: sentences for the user.
    """

    quantizers: Quantizers
    start_score: float
    score: float
    epoch: int = 0
    history: list[float] = field(default_factory=list)
    seconds: float = 0.0
    images: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def improved(self) -> bool:
        """Whether learning beat its starting point."""
        return self.epoch > 0

    def after(self, first: Learned) -> Learned:
        """What came out of two methods, one after the other; epochs are counted through."""
        before = len(first.history)
        return replace(
            self,
            start_score=first.start_score,
            epoch=before + self.epoch if self.improved else first.epoch,
            history=[*first.history, *self.history],
            seconds=first.seconds + self.seconds,
            images=first.images + self.images,
            notes=[*first.notes, *self.notes],
        )


class Learning:
    """One run of learning.

    Args:
        student: the student.
        remainder: the loss graph to run, and its feeds.
        start: the numbers to start from.
        trained: what is trained, from those numbers on.
        budget: how long and how fast.
        checkpoint: where to keep the state; None keeps none.
    """

    def __init__(
        self,
        student: Student,
        remainder: Remainder,
        start: Quantizers,
        trained: Trained,
        budget: Budget,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self._student, self._trained = student, trained
        self._train, self._constants = remainder.train, remainder.constants
        self._held_back = HeldBack(remainder.model, remainder.held_back)
        self._budget, self._checkpoint = budget, checkpoint
        self._moving = moving_inputs(student.plan, student.sources, trained.names)
        self._engine = Engine(remainder.model, trained.names, LOSS)
        self._adam = Adam(budget.lr)
        self._steps = -(-self._train.positions // (SHARDS * budget.shard_size))
        self._schedule = CosineRestarts(budget.lr, RESTART_EPOCHS * self._steps)
        score = self._held_back.score(self._feeds(start))
        self._best: Arrays = {}
        self._first = {key: value.copy() for key, value in trained.values.items()}
        self._rate, self._since = 1.0, 0
        self._result = Learned(start, score, score)

    def _feeds(self, quantizers: Quantizers) -> Arrays:
        plan, sources = self._student.plan, self._student.sources
        return {**self._constants, **student_feeds(plan, quantizers, sources, self._moving)}

    def run(self, progress: Progress, resume: bool = False) -> Learned:
        """Train until the epochs or the clock run out; the best held-back score is kept."""
        began = time.monotonic()
        result = self._result
        first = self._load() if resume else 0
        positions = self._train.positions
        progress.start("learn", self._budget.epochs * positions)
        progress.at(first * positions, self._text())
        for epoch in range(first, self._budget.epochs):
            if time.monotonic() - began > self._budget.max_seconds:
                break
            self._epoch(epoch, progress, began)
            self._judge(epoch + 1)
            self._slow_down(epoch + 1)
            self._save(epoch + 1)
        result.seconds += time.monotonic() - began
        progress.finish()
        return result

    def _epoch(self, epoch: int, progress: Progress, began: float) -> None:
        positions, size = self._train.positions, self._budget.shard_size
        order = np.random.default_rng((self._budget.seed, epoch)).permutation(positions)
        stream = self._train.batches(order, size)
        done = 0
        for step in range(self._steps):
            shards = [s for _, s in zip(range(SHARDS), stream, strict=False)]
            count = min(SHARDS * size, positions - done)
            self._step(epoch * self._steps + step, shards, count)
            done += count
            self._result.images += count
            if time.monotonic() - began > self._budget.max_seconds:
                break
            progress.at(epoch * positions + done, self._text())

    def _step(self, step: int, shards: list[Arrays], count: int) -> None:
        step -= self._since
        if step and self._schedule.restarts_at(step):
            self._adam.reset()
        self._adam.lr = self._rate * self._schedule.lr(step)
        parameters = self._feeds(self._trained.quantizers())
        others = {k: v for k, v in parameters.items() if k not in self._engine.trainable}
        loss, found = self._engine.gradients(parameters, [{**shard, **others} for shard in shards])
        factor = self._factor(loss, count)
        gradients = {k: g * factor for k, g in self._trained.gradients(found).items()}
        self._adam.step(self._trained.values, gradients)
        self._trained.project()

    def _factor(self, loss: float, count: int) -> np.float32:
        """The derivative of the RMSE by the loss: 1 / (2 * RMSE * samples)."""
        return np.float32(1.0 / max(2.0 * relative_rmse(loss, count) * count, 1e-12))

    def _judge(self, epoch: int) -> None:
        quantizers = self._trained.quantizers()
        score = self._held_back.score(self._feeds(quantizers))
        self._result.history.append(score)
        if score < self._result.score:
            self._result.quantizers, self._result.score = quantizers, score
            self._result.epoch = epoch
            if self._checkpoint is not None:
                self._best = {k: v.copy() for k, v in self._trained.values.items()}

    def _slow_down(self, epoch: int) -> None:
        """Begin again at a lower rate where nothing was won yet and much was lost."""
        result = self._result
        if result.improved or result.history[-1] <= MUCH_WORSE * result.start_score:
            return
        self._trained.load(self._first)
        self._adam.reset()
        self._rate *= SLOWER
        self._since = epoch * self._steps

    def _text(self) -> str:
        return (
            f"held-back error {self._result.score:.4f}, at the start {self._result.start_score:.4f}"
        )

    def _save(self, epoch: int) -> None:
        if self._checkpoint is None:
            return
        arrays = {
            "epoch": np.array(epoch),
            "best_epoch": np.array(self._result.epoch),
            "score": np.array(self._result.score),
            "history": np.array(self._result.history),
            "rate": np.array([self._rate, self._since]),
            **{f"value/{k}": v for k, v in self._trained.values.items()},
            **{f"best/{k}": v for k, v in self._best.items()},
            **{f"adam/{k}": v for k, v in self._adam.state().items()},
        }
        self._checkpoint.save(arrays)

    def _load(self) -> int:
        """Put the saved state back; the number of epochs already done."""
        arrays = self._checkpoint.load() if self._checkpoint else None
        if arrays is None:
            return 0
        parts = _by_prefix(arrays)
        rate, since = arrays["rate"].tolist()
        self._rate, self._since = float(rate), int(since)
        self._result.history = arrays["history"].tolist()
        self._result.score = float(arrays["score"])
        self._result.epoch = int(arrays["best_epoch"])
        if "best" in parts:
            self._best = parts["best"]
            self._trained.load(self._best)
            self._result.quantizers = self._trained.quantizers()
        self._trained.load(parts["value"])
        self._adam.load_state(parts.get("adam", {}))
        return int(arrays["epoch"])


def _by_prefix(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        prefix, slash, rest = name.partition("/")
        if slash:
            parts.setdefault(prefix, {})[rest] = array
    return parts
