"""The training loop over batches; the held-out samples decide which epoch is kept."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from onnxq.engine import Engine
from onnxq.progress import Progress
from onnxq.runtime.clock import TIME_RAN_OUT
from onnxq.runtime.dataset import Dataset, Mapped
from onnxq.runtime.session import Arrays, ScaleError
from onnxq.train.augment import Transform
from onnxq.train.budget import (
    EPOCH_PASSES,
    LEAST_GAIN,
    LONG,
    LOOK_STEPS,
    SHARDS,
    Budget,
    Values,
)
from onnxq.train.checkpoint import Checkpoint, State
from onnxq.train.held_out import Score, TrainingHistory
from onnxq.train.objective import Objective
from onnxq.train.optimizer import CosineRestarts, flattened, nested

RESTART_EPOCHS = 4
"""Epochs between restarts of the learning rate and of the optimizer's state (FAT)."""
STOPPED = "learning stopped after"
SAVE_SECONDS = 30.0
"""Least seconds between two checkpoints."""

PATIENCE = 2 * RESTART_EPOCHS
"""Epochs without a better score after which training may stop early."""

MUCH_WORSE = 1.1
"""Where the score reaches this ratio to the start, and none was better, the rate is too high."""
SLOWER = 0.25
"""Factor by which the rate is then lowered."""


HistoryT = TypeVar("HistoryT", bound=TrainingHistory)


class Loop(ABC, Generic[HistoryT]):
    """One run of training. A subclass says what the values stand for, and evaluates them.

    Args:
        engine: of the loss graph.
        train: feeds of the loss graph on the training slice.
        objective: the loss.
        trained: the values, at their start.
        budget: how long and how fast.
        scored: the held-out score of the start.
        history: filled with the epochs of the run.
        checkpoint: None keeps none.
        transform: how the training samples change in each epoch; None leaves them unchanged.
        whole_shards: whether the rest of an epoch that fills no shard is left out.
    """

    def __init__(
        self,
        engine: Engine,
        train: Dataset,
        objective: Objective,
        trained: Values,
        budget: Budget,
        scored: Score,
        history: HistoryT,
        checkpoint: Checkpoint | None = None,
        transform: Transform | None = None,
        *,
        whole_shards: bool = False,
    ) -> None:
        self._engine, self._train, self._transform = engine, train, transform
        self._objective, self._budget, self._checkpoint = objective, budget, checkpoint
        self._trained, self._judged, self._result = trained, scored, history
        self._optimizer = budget.make_optimizer(trained)
        # A position of a model of fixed batch is a whole feed, which nothing is stacked with.
        shard = budget.shard_size if train.batch is None else 1
        self._shards = budget.shards if train.batch is None else SHARDS
        self._size = self._shards * shard
        short = len(train) % shard if whole_shards and len(train) > shard else 0
        self._used = len(train) - short
        self._steps = -(-self._used // self._size)
        groups = frozenset(trained.groups.values())
        self._most = budget.passes(groups, self._steps)
        self._cycles = budget.stops_early(groups)
        if self._cycles:
            self._plan_looks()
        self._state = State(1 if self._cycles else self._most)
        self._restarts = not (self._cycles or groups & LONG)
        self._first = {key: value.copy() for key, value in trained.values.items()}
        self._best: Arrays = {}

    def _plan_looks(self) -> None:
        """Make an epoch a few steps, on other samples each time, whose gain is seen after it.

        With a transform, which changes the samples of a whole epoch, it stays whole.
        """
        whole = self._most * self._used
        if self._transform is None:
            self._used = min(self._used, LOOK_STEPS * self._size)
        self._steps = -(-self._used // self._size)
        self._whole = -(-whole // self._used)
        self._most = min(self._whole, max(1, round(self._budget.most_passes / self._passes(1))))

    def _passes(self, epochs: int) -> float:
        """Forward passes of the training slice in so many epochs."""
        return EPOCH_PASSES * epochs * self._used / len(self._train)

    def _begin(self) -> None:
        """Called when an epoch begins."""
        return None

    @abstractmethod
    def _parameters(self) -> Arrays:
        """The inputs of the loss graph, besides the samples, for the current values."""

    @abstractmethod
    def _chained(self, found: Mapping[str, np.ndarray]) -> Arrays:
        """dL/d value by key, from the gradients at the latest result of `_parameters`."""

    @abstractmethod
    def _take(self) -> None:
        """Compute the parameters of the current values, to be evaluated and maybe kept."""

    @abstractmethod
    def _judge_taken(self) -> Score:
        """The held-out score of the parameters that `_take` computed."""

    @abstractmethod
    def _keep(self) -> None:
        """Keep the parameters that `_take` computed: they are the best so far."""

    def run(self, progress: Progress, resume: bool = False) -> HistoryT:
        """Train until the epochs or the time run out; what has the best held-out score is kept."""
        self._began = self._saved = time.monotonic()
        if resume:
            self._load()
        self._before = self._state.curve[-1][0] if self._state.curve else 0.0
        state, positions = self._state, self._used
        progress.start("learn", state.epochs * positions)
        progress.at(state.epoch * positions, self._text())
        while not self._over():
            self._epoch(progress)
            self._judge()
            state.step, state.epoch = 0, state.epoch + 1
            self._slow_down()
            self._plan_by_clock()
            if self._cycles and state.epoch == state.epochs:
                self._extend()
            if not self._over():
                self._save()
        state.cut |= state.epoch < state.epochs and self._late()
        self._result.notes += self._notes()
        # A later `resume` must find this stage finished.
        state.epochs = state.epoch
        self._save()
        self._result.history, self._result.curve = list(state.history), list(state.curve)
        self._result.seconds += time.monotonic() - self._began
        progress.finish()
        return self._result

    def _over(self) -> bool:
        return self._state.epoch >= self._state.epochs or self._late() or self._stale()

    def _late(self) -> bool:
        return time.monotonic() - self._began > self._budget.max_seconds

    def _stale(self) -> bool:
        """Whether half of all epochs, and `PATIENCE` at least, went by without a better score.

        Never under one cosine without restarts: its last epochs gain most.
        """
        state = self._state
        patience = max(PATIENCE, state.epochs // 2)
        return self._restarts and state.epoch - self._result.epoch > patience

    def _epoch(self, progress: Progress) -> None:
        state, positions = self._state, self._used
        if state.step == 0:
            self._begin()
        for shards in self._batches():
            done = min(positions, (state.step + 1) * self._size)
            count = (done - state.step * self._size) * (self._train.batch or 1)
            if not self._step(shards, count):
                break
            state.step += 1
            self._result.images += count
            if self._late():
                break
            progress.at(state.epoch * positions + done, self._text())
            if time.monotonic() - self._saved > SAVE_SECONDS:
                self._save()

    def _batches(self) -> Iterator[list[Arrays]]:
        """The shards of each remaining batch of this epoch."""
        state = self._state
        rng = np.random.default_rng((self._budget.seed, state.epoch))
        order = rng.permutation(len(self._train))[: self._used][state.step * self._size :]
        train = self._train
        if self._transform is not None:
            train = Mapped(train, partial(self._transform.apply, epoch=state.epoch))
        stream = train.batches(self._budget.shard_size, order)
        while shards := [s for _, s in zip(range(self._shards), stream, strict=False)]:
            yield shards

    def _step(self, shards: list[Arrays], count: int) -> bool:
        """Update the values by one batch; False where something is not finite."""
        self._optimizer.lr = self._rate()
        parameters = self._parameters()
        others = {k: v for k, v in parameters.items() if k not in self._engine.trainable}
        loss, found = self._engine.gradients(parameters, [{**shard, **others} for shard in shards])
        if not math.isfinite(loss) or not _finite(found):
            self._state.loss = math.inf
            return False
        slope = np.float32(self._objective.slope(loss, count))
        gradients = {k: g * slope for k, g in self._chained(found).items()}
        self._state.add_loss(self._objective.score(loss, count))
        self._optimizer.step(self._trained.values, gradients)
        self._trained.project()
        if not _finite(self._trained.values):
            self._trained.load(self._first)
            self._state.loss = math.inf
            return False
        return True

    def _rate(self) -> float:
        """The learning rate of this step, relative to that of each group."""
        state = self._state
        epochs = RESTART_EPOCHS if self._restarts else max(1, state.epochs - state.since)
        schedule = CosineRestarts(1.0, epochs * self._steps)
        step = (state.epoch - state.since) * self._steps + state.step
        if schedule.restarts_at(step):
            self._optimizer.reset()
        return state.rate * schedule.lr(step)

    def _judge(self) -> None:
        self._take()
        state = self._state
        try:
            self._judged = self._judge_taken()
        except ScaleError:
            # No file could run with these quantization parameters.
            self._judged = Score(math.inf)
        state.history.append(self._judged.score)
        agreement = math.nan if self._judged.agreement is None else self._judged.agreement
        seconds = self._before + time.monotonic() - self._began
        state.curve.append((seconds, self._judged.score, agreement))
        if self._judged.score < self._result.score:
            self._keep()
            self._result.score, self._result.epoch = self._judged.score, state.epoch + 1
            if self._checkpoint is not None:
                self._best = {k: v.copy() for k, v in self._trained.values.items()}

    def _extend(self) -> None:
        """At the end of a cycle, plan one of twice the length, where this one gained enough."""
        state = self._state
        length, gain = self._cycle()
        # One without epochs has just had its rate lowered.
        if length and (gain < LEAST_GAIN * self._passes(length) or state.epoch >= self._most):
            return
        state.since = state.epoch
        state.epochs = min(self._most, state.epoch + max(1, 2 * length))
        self._optimizer.reset()

    def _cycle(self) -> tuple[int, float]:
        """Epochs since the rate restarted, and their gain as a share of the best score before."""
        state = self._state
        before = min([self._result.start_score, *state.history[: state.since]])
        after = min([before, *state.history[state.since :]])
        return state.epoch - state.since, 1 - after / before if before else 0.0

    def _notes(self) -> list[str]:
        """Why training ended before the epochs of its method; the same when a run is resumed."""
        epoch = self._state.epoch
        if self._state.cut:
            passes = "1 epoch" if epoch == 1 else f"{epoch} epochs"
            return [f"{TIME_RAN_OUT}: learning ended after {passes}; --max-minutes gives more"]
        if not self._cycles:
            return []
        length, gain = self._cycle()
        return [
            f"{STOPPED} {self._passes(epoch):.1f} forward passes of the samples: the last "
            f"{self._passes(length):.1f} lowered the held-out error by {gain:.1%}; --effort max "
            f"would take {self._passes(self._whole - epoch):.0f} more"
        ]

    def _slow_down(self) -> None:
        """Start again at a lower rate, where the score got much worse or is not finite."""
        result, state = self._result, self._state
        much_worse = state.history[-1] > MUCH_WORSE * result.start_score and not result.improved
        if math.isfinite(state.loss) and math.isfinite(state.history[-1]) and not much_worse:
            return
        state.loss = math.nan
        self._trained.load(self._first)
        self._optimizer.reset()
        state.rate *= SLOWER
        state.since = state.epoch

    def _plan_by_clock(self) -> None:
        """After the first epoch, plan as many as the time allows: the rate anneals to the end."""
        state, spent = self._state, time.monotonic() - self._began
        if state.epoch == 1:
            samples = self._used * (self._train.batch or 1)
            epoch = spent * samples / max(self._result.images, 1)
            possible = max(1, int(self._budget.max_seconds / max(epoch, 1e-3)))
            state.cut = possible < state.epochs
            state.epochs = min(state.epochs, possible)

    def _text(self) -> str:
        result, scored, state = self._result, self._judged, self._state
        seconds = max(time.monotonic() - self._began, 1e-3)
        agreement = "" if scored.agreement is None else f", agreement {scored.agreement:.1f} %"
        told = "" if self._transform is None else self._transform.text()
        error = "" if math.isnan(state.loss) else f"{state.loss:.4f}, "
        return (
            f"{result.unit} {error}held out {result.score:.4f} (start "
            f"{result.start_score:.4f}){agreement}, {result.images / seconds:.0f} samples/s"
            + (told and f"; {told}")
        )

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self._checkpoint is None:
            return
        result = self._result
        groups = {
            "value": self._trained.values,
            "best": self._best,
            "optimizer": self._optimizer.state(),
            "state": self._state.arrays(),
            "changes": {} if self._transform is None else self._transform.state(),
            "result": {"score": np.array(result.score), "epoch": np.array(result.epoch)},
        }
        self._checkpoint.save(flattened(groups))

    def _load(self) -> None:
        """Restore the saved state, where there is one."""
        arrays = self._checkpoint.load() if self._checkpoint else None
        if arrays is None:
            return
        parts = nested(arrays)
        self._state.load(parts["state"])
        self._result.score = float(parts["result"]["score"])
        self._result.epoch = int(parts["result"]["epoch"])
        if "best" in parts:
            self._best = parts["best"]
            self._trained.load(self._best)
            self._take()
            self._keep()
        self._trained.load(parts["value"])
        self._optimizer.load_state(parts.get("optimizer", {}))
        if "changes" in parts and self._transform is not None:
            self._transform.load_state(parts["changes"])


def _finite(arrays: Mapping[str, np.ndarray]) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays.values())
