"""The tensors between the blocks of teacher and student, kept on disk for every sample."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.forms.forms import Variant
from onnxq.learn.frozen import DISK_SHARE
from onnxq.runtime.rows import Rows
from onnxq.runtime.session import Arrays, SessionPool
from onnxq.student.blocks import Block, cut_blocks
from onnxq.student.build import QUANTIZED, RAW
from onnxq.student.student import bake_between
from onnxq.train.kept_tensors import stacks
from onnxq.train.teacher import MICRO_BATCH, TeacherOutputs

KEPT_BYTES = 2**31
"""Bytes of the tensors between blocks, at most: where they take more, fewer samples are used."""
GRAPHS = 2
"""Original and student."""


@dataclass(frozen=True)
class Cuts:
    """The blocks of a student, and the samples that are run through them.

    Attributes:
        blocks: of the student's graph.
        positions: of the samples, in a slice.
        note: why not all samples are used; '' where they are.
        names: the teacher's name of a student's tensor, where the two differ.
    """

    blocks: list[Block]
    positions: np.ndarray
    note: str = ""
    names: dict[str, str] = field(default_factory=dict)

    def originals(self, names: Iterable[str]) -> list[str]:
        """The teacher's names of these tensors of the student."""
        return list(dict.fromkeys(self.names.get(name, name) for name in names))

    def later(self, index: int) -> list[str]:
        """Names of the tensors that blocks after this one read."""
        return list(dict.fromkeys(n for block in self.blocks[index + 1 :] for n in block.inputs))


def find_cuts(
    variant: Variant, layers: Collection[str], train: TeacherOutputs, folder: Path
) -> Cuts:
    """Blocks that are cut at tensors with one row per sample, and as many samples as fit on disk.

    Args:
        variant: the student.
        layers: names of the layers to fit.
        train: the slice of the samples.
        folder: a folder on the disk where the tensors will be kept.
    """
    plan, model = variant.student.plan, variant.student.model
    sources = [str(value.name) for value in variant.model.graph.inputs]
    blocks = cut_blocks(model, layers, sources)
    names = list(dict.fromkeys(name for block in blocks for name in block.outputs))
    alone = _tensors(variant, names, train, np.arange(1), 1)
    if train.samples.batch is None and train.positions > 1:
        other = _tensors(variant, names, train, np.arange(1, 2), 1)
        both = _tensors(variant, names, train, np.arange(2), 2)
        refused = [n for n in names if not stacks([alone[n], other[n]], both[n])]
        blocks = cut_blocks(model, layers, sources, refused=refused)
    alone |= {n: a for n, a in next(train.batches(np.arange(1), 1)).items() if n in sources}
    size = GRAPHS * _largest(blocks, {name: array.nbytes for name, array in alone.items()})
    room = min(KEPT_BYTES, DISK_SHARE * shutil.disk_usage(folder).free)
    count = int(max(1, min(train.positions, room // max(size, 1))))
    order = np.random.default_rng(variant.recipe.seed).permutation(train.positions)
    note = ""
    if count < train.positions:
        note = f"{count} of {train.positions} samples were used: the tensors of more have no room"
    others = {f"{name}{end}": name for name in plan.tensors for end in (RAW, QUANTIZED)}
    return Cuts(blocks, np.sort(order[:count]), note, others)


def _tensors(
    variant: Variant, names: Sequence[str], source: TeacherOutputs, chosen: np.ndarray, size: int
) -> Arrays:
    part = bake_between(variant.student, variant.qparams, (), names)
    read = {value.name for value in part.graph.inputs}
    feeds = next(source.batches(chosen, size))
    return SessionPool(part, names, 1).run({k: v for k, v in feeds.items() if k in read})


def _largest(blocks: Sequence[Block], sizes: dict[str, int]) -> int:
    """The most bytes that one position's kept tensors take at any time."""
    largest = 0
    for i, block in enumerate(blocks[:-1]):
        later = {name for each in blocks[i + 1 :] for name in each.inputs}
        made = {name for each in blocks[: i + 1] for name in each.outputs}
        largest = max(largest, sum(sizes.get(n, 0) for n in {*block.inputs, *(made & later)}))
    return largest


Cut = Callable[[Sequence[str], Sequence[str]], ir.Model]
"""From the names of tensors, and of others that are wanted, to the graph in between."""


class Tensors:
    """Kept tensors of one graph, by name, for some samples; they advance from cut to cut.

    Args:
        source: the slice.
        positions: which of its positions.
        folder: an existing, empty folder for the files.
        what: whose tensors they are, for error messages.

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
        """Other tensors, computed from the kept ones, micro-batch after micro-batch.

        Args:
            cut: extracts a part of the graph, with its parameters as constants.
            inputs: names of kept tensors.
            outputs: names of the tensors to return; kept ones are not computed again.
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
        """Move to the next cut: keep a block's outputs, and delete what no later block reads."""
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
