"""The targets of training: the teacher's outputs, stored on disk or computed again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.errors import DataError
from onnxq.graph.facts import values_by_name
from onnxq.graph.meanings import decides
from onnxq.numerics.channels import ChannelSums
from onnxq.numerics.distances import holds_decisions, look_like_probabilities
from onnxq.options.table import AUTO, Task
from onnxq.progress import Progress
from onnxq.runtime.clock import Clock
from onnxq.runtime.dataset import Dataset, Joined, Samples, Stored, chunks, fed_to
from onnxq.runtime.session import Arrays, SessionPool, available_cores, expose
from onnxq.train.objective import OutputMatching, Weight, target_name

MICRO_BATCH = 16
"""Samples in one run: fixed, so that sums come out the same on any number of cores."""


class Teacher:
    """The float model whose outputs a student is trained to match.

    Args:
        model: the float model; it isn't changed.
        logits: names of the compared tensors.
        task: what the outputs are for; 'auto' finds it from the model.

    Attributes:
        decides: whether the only one of them may hold the logits of classes.
    """

    def __init__(self, model: ir.Model, logits: Sequence[str], task: Task = AUTO) -> None:
        self.logits = list(logits)
        values = values_by_name(model.graph)
        self.decides = len(self.logits) == 1 and decides(values[self.logits[0]], task)
        self._model = expose(model, self.logits)

    def with_targets(self, batches: Iterable[Arrays]) -> Iterator[Arrays]:
        """The batches with their target values, float32, computed a few batches ahead.

        The values have the names of the loss graph's inputs, and replace arrays of those names.
        """
        waiting = deque[Arrays]()

        def inputs() -> Iterator[Arrays]:
            for feeds in batches:
                waiting.append(feeds)
                yield fed_to(self._model, feeds)

        for outputs in SessionPool(self._model, self.logits).map(inputs()):
            targets = {
                target_name(name): outputs[name].astype(np.float32, copy=False)
                for name in self.logits
            }
            yield {**waiting.popleft(), **targets}


def samples_in_time(
    model: ir.Model, samples: Samples, batch: int | None, clock: Clock, seed: int
) -> Samples:
    """The samples, or fewer where a run on all of them would not end in time.

    Args:
        model: the float model; one batch is run through it, to see how long that takes.
        samples: the samples.
        batch: samples in a run of the model, where it takes that number alone.
        clock: of the run.
        seed: of the choice.
    """
    timed = samples.in_batches_of(batch)
    feeds = fed_to(model, next(timed.batches(MICRO_BATCH)))
    taken = min(len(timed), 1 if timed.batch else MICRO_BATCH) * (timed.batch or 1)
    pool = SessionPool(model)
    pool.run(feeds)
    # The first run of a session takes longer.
    began = time.monotonic()
    pool.run(feeds)
    seconds = (time.monotonic() - began) / (taken * available_cores())
    return samples.take(clock.fit(samples.count, seconds), seed)


@dataclass(frozen=True)
class Targets:
    """The samples of a run with their target values.

    Attributes:
        teacher: computes the targets of other samples.
        train: the training slice, with targets.
        held_out: the held-out samples, with targets.
        objective: the loss, relative to the outputs on the training slice.
    """

    teacher: Teacher
    train: Joined
    held_out: Joined
    objective: OutputMatching


def keep_targets(
    teacher: Teacher,
    samples: Dataset,
    folder: Path,
    at: Callable[[int], None] | None = None,
) -> tuple[Joined, OutputMatching]:
    """The samples joined with the teacher's outputs on them, which are stored on disk.

    Args:
        teacher: the teacher.
        samples: its inputs.
        folder: an existing, empty folder for the files.
        at: called with the number of indices done.

    Returns:
        The dataset, and the loss relative to these outputs.

    Raises:
        DataError: an output is NaN or infinite, so that nothing can be compared with it.
        OutputError: the disk is full.
    """
    stored = Stored(folder, samples.batch, "the original's outputs")
    squares = dict.fromkeys(teacher.logits, 0.0)
    channels = {name: ChannelSums() for name in teacher.logits}
    decision: str | None = None
    batches = teacher.with_targets(samples.batches(MICRO_BATCH))
    for chosen, feeds in zip(chunks(samples, MICRO_BATCH), batches, strict=True):
        found = {name: feeds[target_name(name)] for name in teacher.logits}
        if not len(stored) and teacher.decides:
            decision = _decision(found, len(chosen) * (samples.batch or 1))
        for name, array in found.items():
            squares[name] += float(np.square(array, dtype=np.float64).sum())
            channels[name].add(array)
        stored.append({target_name(name): array for name, array in found.items()}, len(chosen))
        if at is not None:
            at(len(stored))
    _check_finite(squares)
    count = max(len(stored) * (samples.batch or 1), 1)
    weights = {
        name: _weight(count, len(squares) * max(sum_, 1e-12), channels[name])
        for name, sum_ in squares.items()
    }
    return Joined(samples, stored), OutputMatching(weights, decision)


def _weight(samples: int, squares: float, channels: ChannelSums) -> Weight:
    """The factor of a tensor in the loss: samples / (tensors * its sum of squares).

    The loss of one sample is then its squared error relative to the teacher's mean square,
    averaged over the tensors. Where channels mean different things, each group of them counts as
    half a tensor, relative to its own sum of squares.

    Args:
        samples: behind the sums.
        squares: tensors * the sum of squares of all elements.
        channels: the sums by channel.
    """
    groups = channels.groups()
    if groups is None:
        return samples / squares
    by_channel = channels.squares(groups.axis)
    larger, smaller = groups.sums(by_channel)
    own = np.where(groups.larger, larger, smaller) / by_channel.sum()
    return np.asarray(samples / (2 * squares * own), np.float32).reshape(groups.shape)


def _check_finite(squares: Mapping[str, float]) -> None:
    for name, sum_ in squares.items():
        if not np.isfinite(sum_):
            raise DataError(
                f"the model's tensor '{name}' is NaN or infinite on these samples; check the "
                "model's weights, and that samples, --mean and --std fit its training"
            )


def _decision(outputs: Arrays, samples: int) -> str | None:
    """The tensor, where it holds class logits; a model's own probabilities don't count."""
    ((name, rows),) = outputs.items()
    if not holds_decisions(rows.shape, samples):
        return None
    return None if look_like_probabilities(rows.reshape(samples, -1)) else name


def find_targets(
    model: ir.Model,
    logits: Sequence[str],
    slices: tuple[Samples, Samples],
    folder: Path,
    whose: str,
    progress: Progress,
    task: Task = AUTO,
) -> Targets:
    """The outputs of a model on the samples to learn on, and on those held out.

    Args:
        model: the float model.
        logits: names of the compared tensors.
        slices: the samples to learn on, and those held out.
        folder: an existing one, for both.
        whose: outputs they are, for progress.
        progress: told how far it is.
        task: as of `Teacher`.
    """
    teacher = Teacher(model, logits, task)

    def kept(name: str, samples: Samples) -> tuple[Joined, OutputMatching]:
        (folder / name).mkdir()
        progress.start(f"{whose} outputs, {name} slice", len(samples))
        found = keep_targets(teacher, samples, folder / name, progress.at)
        progress.finish()
        return found

    train, objective = kept("train", slices[0])
    held_out, _ = kept("held-out", slices[1])
    return Targets(teacher, train, held_out, objective)
