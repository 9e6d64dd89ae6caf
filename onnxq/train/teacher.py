"""The teacher's outputs, computed once and kept on disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir

from onnxq.data.samples import Samples
from onnxq.errors import DataError
from onnxq.numerics.distances import holds_decisions, look_like_probabilities
from onnxq.runtime.rows import Rows
from onnxq.runtime.session import Arrays, SessionPool, expose
from onnxq.train.loss import target_name

MICRO_BATCH = 16
"""Samples in one run: fixed, so that sums come out the same on any number of cores."""


class Targeted(Protocol):
    """Feeds of a loss graph by position, with the values to match among them."""

    @property
    def positions(self) -> int:
        """The number of positions."""

    @property
    def batch(self) -> int | None:
        """Samples at a position that is one whole feed; None where a position is a sample."""

    def batches(self, positions: np.ndarray, size: int) -> Iterator[Arrays]:
        """Feeds for these positions, in this order, `size` at a time."""


class TeacherOutputs:
    """The teacher's logits for some samples, by position, in files under a folder.

    Where the model takes any batch, a position is a sample and rows are stacked; where it
    fixes the batch, a position is one whole feed.

    Args:
        teacher: the float model.
        logits: names of the compared tensors.
        samples: the samples; `batches` gives them again with their targets.
        folder: an existing folder for the files.
        on_batch: called with the number of samples done.

    Attributes:
        inputs: names of the model's inputs.
        decision: the name of a classifier's logits, the only compared tensor; None elsewhere.

    Raises:
        DataError: an output is NaN or infinite, so that nothing can be compared with it.
        OutputError: there is no room in the folder.
    """

    def __init__(
        self,
        teacher: ir.Model,
        logits: Sequence[str],
        samples: Samples,
        folder: Path,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        self.logits = list(logits)
        self.samples = samples
        self.folder = folder
        self.decision: str | None = None
        self.inputs = frozenset(value.name for value in teacher.graph.inputs)
        self._group = samples.batch
        self._rows = Rows(folder, len(samples), self._group is not None, "the original's outputs")
        self._squares = dict.fromkeys(self.logits, 0.0)
        self._teacher = expose(teacher, self.logits)
        for outputs in SessionPool(self._teacher, self.logits).map(samples.batches(MICRO_BATCH)):
            self._store(outputs)
            if on_batch is not None:
                on_batch(min(self.positions * (self._group or 1), len(samples)))
        self._check_finite()

    @property
    def positions(self) -> int:
        """The number of positions."""
        return self._rows.stored

    @property
    def batch(self) -> int | None:
        """The only batch size that the model takes; None where it is free."""
        return self._group

    def _check_finite(self) -> None:
        for name, squares in self._squares.items():
            if not np.isfinite(squares):
                raise DataError(
                    f"the model's tensor '{name}' is NaN or infinite on these samples; check the "
                    "model's weights, and that samples, --mean and --std are what it was made for"
                )

    def _store(self, outputs: Arrays) -> None:
        count = 1 if self._group else min(MICRO_BATCH, len(self.samples) - self.positions)
        found = self._floats(outputs)
        if not self.positions:
            self.decision = _decision(found, self._group or count)
        for name, array in found.items():
            self._squares[name] += float(np.square(array, dtype=np.float64).sum())
        self._rows.append(found, count)

    def _floats(self, outputs: Arrays) -> Arrays:
        return {name: outputs[name].astype(np.float32, copy=False) for name in self.logits}

    def weights(self) -> dict[str, float]:
        """The factor of each tensor in the loss: 1 / (tensors * sum of squares per sample).

        The loss of one sample is then its squared error relative to the teacher's mean
        square, averaged over the tensors.
        """
        count = max(self.positions * (self._group or 1), 1)
        return {
            name: count / (len(self.logits) * max(self._squares[name], 1e-12))
            for name in self.logits
        }

    def batches(self, positions: np.ndarray, size: int) -> Iterator[Arrays]:
        """Feeds with the targets beside the inputs, for these positions, in this order."""
        group = self._group or 1
        samples = (positions[:, None] * group + np.arange(group)).reshape(-1)
        feeds = self.samples.subset(samples).batches(size)
        for chosen, inputs in zip(self.chunks(positions, size), feeds, strict=True):
            yield {**inputs, **self.targets(chosen)}

    def chunks(self, positions: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """The positions of each batch; one where the model fixes its batch."""
        step = 1 if self._group else size
        for start in range(0, len(positions), step):
            yield positions[start : start + step]

    def targets(self, positions: np.ndarray) -> Arrays:
        """The values to match at the positions of one batch, by the loss graph's inputs."""
        return {target_name(name): rows for name, rows in self._rows.at(positions).items()}

    def retargeted(self, batches: Iterable[Arrays]) -> Iterator[Arrays]:
        """Feeds of other samples with the values to match for them, computed a few ahead."""
        waiting = deque[Arrays]()

        def inputs() -> Iterator[Arrays]:
            for feeds in batches:
                waiting.append(feeds)
                yield {name: array for name, array in feeds.items() if name in self.inputs}

        for outputs in SessionPool(self._teacher, self.logits).map(inputs()):
            targets = {target_name(name): rows for name, rows in self._floats(outputs).items()}
            yield {**waiting.popleft(), **targets}


def _decision(outputs: Arrays, samples: int) -> str | None:
    """The only tensor, where it holds logits of classes; a model's own probabilities are none."""
    (name, rows), *others = outputs.items()
    if others or not holds_decisions(rows.shape, samples):
        return None
    return None if look_like_probabilities(rows.reshape(samples, -1)) else name
