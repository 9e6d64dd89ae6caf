"""The tensors between blocks, of teacher and student, kept on disk for every sample."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.learn.rows import Rows
from onnxq.learn.teacher import MICRO_BATCH, TeacherOutputs
from onnxq.session import Arrays, SessionPool

Cut = Callable[[Sequence[str], Sequence[str]], ir.Model]
"""From the names of tensors, and of others that are wanted, to the graph in between."""


class Tensors:
    """Tensors of one graph by name, for the samples of a slice; they go forward block by block.

    Args:
        source: the slice.
        positions: which of its positions.
        folder: an existing, empty folder for the files.
        what: whose tensors they are, for an error.

    Attributes:
        count: the number of positions.
    """

    def __init__(
        self, source: TeacherOutputs, positions: np.ndarray, folder: Path, what: str
    ) -> None:
        self._folder, self._what = folder, what
        self._whole = source.samples.batch is not None
        self._size = 1 if self._whole else MICRO_BATCH
        self.count = len(positions)
        self._rows: dict[str, Rows] = {}
        self._made = 0
        feeds = source.batches(positions, MICRO_BATCH)
        inputs = [str(name) for name in source.inputs]
        self._store([], ({n: fed[n] for n in inputs} for fed in feeds))

    def chunks(self) -> list[np.ndarray]:
        """The positions of each micro-batch."""
        every = np.arange(self.count)
        return [every[i : i + self._size] for i in range(0, self.count, self._size)]

    def at(self, names: Collection[str], positions: np.ndarray) -> Arrays:
        """These tensors at these positions."""
        found: Arrays = {}
        for name in names:
            found |= {name: self._rows[name].at(positions)[name]}
        return found

    def batches(self, names: Collection[str]) -> Iterator[Arrays]:
        """These tensors, micro-batch after micro-batch."""
        return (self.at(names, chosen) for chosen in self.chunks())

    def run(self, cut: Cut, inputs: Sequence[str], outputs: Sequence[str]) -> Iterator[Arrays]:
        """Other tensors, computed from these, micro-batch after micro-batch.

        Args:
            cut: gives a part of the graph, its parameters among its constants.
            inputs: names of tensors that are kept.
            outputs: names of the tensors wanted; those that are kept are not computed.
        """
        kept = [name for name in outputs if name in self._rows]
        wanted = [name for name in outputs if name not in self._rows]
        if not wanted:
            yield from self.batches(kept)
            return
        part = cut(inputs, wanted)
        read = [str(value.name) for value in part.graph.inputs]
        pool = SessionPool(part, wanted)
        for chosen, found in zip(self.chunks(), pool.map(self.batches(read)), strict=True):
            yield {**self.at(kept, chosen), **found}

    def advance(
        self, cut: Cut, inputs: Sequence[str], outputs: Sequence[str], later: Collection[str]
    ) -> None:
        """Go on to the next cut: keep the outputs of a block, and drop what no one reads later."""
        fresh = [name for name in outputs if name not in self._rows]
        if fresh:
            self._store(fresh, self.run(cut, inputs, fresh))
        for name in [name for name in self._rows if name not in later]:
            self._rows.pop(name).remove()

    def _store(self, names: Sequence[str], batches: Iterator[Mapping[str, np.ndarray]]) -> None:
        rows: dict[str, Rows] = {}
        for chosen, found in zip(self.chunks(), batches, strict=True):
            for name in names or found:
                if name not in rows:
                    rows[name] = Rows(self._fresh_folder(), self.count, self._whole, self._what)
                rows[name].append({name: found[name]}, len(chosen))
        self._rows |= rows

    def _fresh_folder(self) -> Path:
        folder = self._folder / str(self._made)
        folder.mkdir()
        self._made += 1
        return folder
