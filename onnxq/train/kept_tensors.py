"""The tensors at a cut of the graph, computed once for every sample and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.runtime.rows import Rows
from onnxq.runtime.session import Arrays, SessionPool
from onnxq.train.teacher import MICRO_BATCH, TeacherOutputs

CLOSE = 1e-3
"""Relative difference up to which a tensor of two samples is that of each of them, stacked."""


class Prefix:
    """The part of a loss graph before the cut.

    Args:
        model: the prefix.
        cut: names of its outputs.
        constants: inputs that it may take besides the samples'.
    """

    def __init__(self, model: ir.Model, cut: Sequence[str], constants: Arrays) -> None:
        self.model, self.cut = model, list(cut)
        self._pool = SessionPool(model, self.cut)
        self._constants = read_by(model, constants)

    def run(self, source: TeacherOutputs, positions: np.ndarray, size: int) -> Iterator[Arrays]:
        """The tensors at the cut for these positions, `size` at a time."""
        feeds = (read_by(self.model, fed) for fed in source.batches(positions, size))
        yield from self._pool.map({**self._constants, **fed} for fed in feeds)

    def unstackable(self, source: TeacherOutputs) -> str:
        """The first tensor of which the samples' rows don't follow one another; else ''."""
        if source.samples.batch is not None or source.positions < 2:
            return ""
        pair = np.arange(2)
        alone = list(self.run(source, pair, 1))
        both = next(self.run(source, pair, 2))
        return next((n for n in self.cut if not stacks([a[n] for a in alone], both[n])), "")

    def nbytes(self, source: TeacherOutputs) -> int:
        """Bytes of the tensors at one position."""
        tensors = next(self.run(source, np.arange(1), 1))
        return sum(array.nbytes for array in tensors.values())


def stacks(alone: list[np.ndarray], both: np.ndarray) -> bool:
    """Whether a tensor of two samples is those of each, one after the other."""
    if not both.ndim or any(each.shape[1:] != both.shape[1:] for each in alone):
        return False
    stacked = np.concatenate(alone)
    if stacked.shape != both.shape or alone[0].shape != alone[1].shape:
        return False
    largest = float(np.abs(stacked.astype(np.float64)).max(initial=0.0))
    return bool(np.allclose(both, stacked, rtol=CLOSE, atol=CLOSE * largest, equal_nan=True))


def read_by(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> Arrays:
    """Those of the feeds that are inputs of the model."""
    inputs = {value.name for value in model.graph.inputs}
    return {name: value for name, value in feeds.items() if name in inputs}


class KeptTensors:
    """Feeds of the suffix of a loss graph, by position.

    Args:
        prefix: the part before the cut.
        suffix: the part behind it.
        source: the slice of the samples.
        folder: an existing folder for the files.
        on_position: called with the number of positions done.

    Raises:
        OutputError: there is no room in the folder.
    """

    def __init__(
        self,
        prefix: Prefix,
        suffix: ir.Model,
        source: TeacherOutputs,
        folder: Path,
        on_position: Callable[[int], None],
    ) -> None:
        self._suffix, self._source = suffix, source
        self._reads_samples = any(v.name in source.inputs for v in suffix.graph.inputs)
        whole = source.samples.batch is not None
        self._rows = Rows(folder, source.positions, whole, "the tensors before the trained layers")
        positions = np.arange(source.positions)
        results = prefix.run(source, positions, MICRO_BATCH)
        for chunk, tensors in zip(source.chunks(positions, MICRO_BATCH), results, strict=True):
            self._rows.append(tensors, len(chunk))
            on_position(self._rows.stored)

    @property
    def positions(self) -> int:
        """The number of positions."""
        return self._rows.stored

    @property
    def batch(self) -> int | None:
        """The only batch size that the model takes; None where it is free."""
        return self._source.batch

    def batches(self, positions: np.ndarray, size: int) -> Iterator[Arrays]:
        """Feeds for these positions; the samples are read only where the suffix takes them."""
        chunks = self._source.chunks(positions, size)
        if not self._reads_samples:
            for chosen in chunks:
                yield {**self._rows.at(chosen), **self._source.targets(chosen)}
            return
        feeds = self._source.batches(positions, size)
        for chosen, fed in zip(chunks, feeds, strict=True):
            yield {**read_by(self._suffix, fed), **self._rows.at(chosen)}
