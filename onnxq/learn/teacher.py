"""The teacher's outputs, computed once and kept on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.data.samples import Samples
from onnxq.errors import DataError, OutputError
from onnxq.learn.loss import target_name
from onnxq.session import Arrays, SessionPool

MICRO_BATCH = 16
"""Samples in one run: fixed, so that sums come out the same on any number of cores."""


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
        self._folder = folder
        self._group = samples.batch
        self._rows: dict[str, np.memmap] = {}
        self._squares = dict.fromkeys(self.logits, 0.0)
        self._elements = dict.fromkeys(self.logits, 0)
        pool = SessionPool(expose(teacher, self.logits), self.logits)
        self.positions = 0
        for outputs in pool.map(samples.batches(MICRO_BATCH)):
            self._store(outputs)
            if on_batch is not None:
                on_batch(min(self.positions * (self._group or 1), len(samples)))
        self._check_finite()

    def _check_finite(self) -> None:
        for name, squares in self._squares.items():
            if not np.isfinite(squares):
                raise DataError(
                    f"the model's tensor '{name}' is NaN or infinite on these samples; check the "
                    "model's weights, and that samples, --mean and --std are what it was made for"
                )

    def _store(self, outputs: Arrays) -> None:
        count = 1 if self._group else min(MICRO_BATCH, len(self.samples) - self.positions)
        for index, name in enumerate(self.logits):
            array = outputs[name].astype(np.float32, copy=False)
            self._squares[name] += float(np.square(array, dtype=np.float64).sum())
            self._elements[name] += array.size
            if self._group:
                _save(self._path(index, self.positions), array)
            else:
                # A tensor before a reshape may hold several rows of each sample.
                rows = array.reshape(count, -1, *array.shape[1:])
                self._memmap(index, name, rows)[self.positions : self.positions + count] = rows
        self.positions += count

    def _memmap(self, index: int, name: str, array: np.ndarray) -> np.memmap:
        if name not in self._rows:
            shape = (len(self.samples), *array.shape[1:])
            path = self._folder / f"{index}.f32"
            _reserve(path, 4 * int(np.prod(shape)))
            self._rows[name] = np.memmap(path, np.float32, "r+", shape=shape)
        return self._rows[name]

    def _path(self, index: int, position: int) -> Path:
        return self._folder / f"{index}.{position}.npy"

    def weights(self) -> dict[str, float]:
        """The factor of each tensor in the loss: 1 / (tensors * sum of squares per sample).

        The loss of one sample is then its squared error relative to the teacher's mean
        square, averaged over the tensors.
        """
        count = max(self.positions, 1)
        return {
            name: count / (len(self.logits) * max(self._squares[name], 1e-12))
            for name in self.logits
        }

    def batches(self, positions: Sequence[int] | np.ndarray, size: int) -> Iterator[Arrays]:
        """Feeds with the targets beside the inputs, for these positions, in this order."""
        positions = np.asarray(positions, np.int64)
        if self._group:
            yield from self._whole_feeds(positions)
            return
        start = 0
        for feeds in self.samples.subset(positions).batches(size):
            chosen = positions[start : start + size]
            yield {**feeds, **{target_name(n): self._targets(n, chosen) for n in self.logits}}
            start += len(chosen)

    def _targets(self, name: str, positions: np.ndarray) -> np.ndarray:
        """The values for these samples, in the shape that the model gives them."""
        rows = np.asarray(self._rows[name][positions])
        return rows.reshape(-1, *rows.shape[2:])

    def _whole_feeds(self, positions: np.ndarray) -> Iterator[Arrays]:
        group = self._group or 1
        rows = (positions[:, None] * group + np.arange(group)).reshape(-1)
        for position, feeds in zip(
            positions, self.samples.subset(rows).batches(group), strict=True
        ):
            targets = {
                target_name(name): np.load(self._path(index, int(position)))
                for index, name in enumerate(self.logits)
            }
            yield {**feeds, **targets}


def _reserve(path: Path, size: int) -> None:
    """Take the disk space of a file at once: a mapped file would end the process later."""
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
            file.truncate(size)
    except OSError as error:
        raise _no_room(path, size, error) from error


def _save(path: Path, array: np.ndarray) -> None:
    try:
        np.save(path, array)
    except OSError as error:
        raise _no_room(path, array.nbytes, error) from error


def _no_room(path: Path, size: int, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(
        f"the temporary folder '{path.parent}' has no room for the original's outputs "
        f"({size} bytes: {reason}); free some space or set TMPDIR to another folder"
    )


def expose(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of the model with these tensors as its only outputs."""
    copy = model.clone(deep_copy=False)
    values = {v.name: v for node in copy.graph for v in node.outputs}
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values[name] for name in names)
    return copy
