"""The tensors between the blocks of teacher and student, kept on disk for every sample."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.forms.variant import Variant
from onnxq.graph.cut import Block, cut_blocks
from onnxq.learn.frozen import DISK_SHARE, unstackable
from onnxq.runtime.dataset import Dataset, Joined, Mapped, Stored, fed_to, first, run_by
from onnxq.runtime.session import Arrays
from onnxq.student.build import QUANTIZED, RAW
from onnxq.student.student import bake_between
from onnxq.train.teacher import MICRO_BATCH

KEPT_BYTES = 2**31
"""Bytes of the tensors between blocks, at most: where they take more, fewer samples are used."""
GRAPHS = 2
"""Original and student."""


@dataclass(frozen=True)
class Cuts:
    """The blocks of a student, and the samples that are run through them.

    Attributes:
        blocks: of the student's graph.
        indices: of the samples, in a slice.
        note: why not all samples are used; '' where they are.
        names: the teacher's name of a student's tensor, where the two differ.
    """

    blocks: list[Block]
    indices: np.ndarray
    note: str = ""
    names: dict[str, str] = field(default_factory=dict)

    def originals(self, names: Iterable[str]) -> list[str]:
        """The teacher's names of these tensors of the student."""
        return list(dict.fromkeys(self.names.get(name, name) for name in names))

    def later(self, index: int) -> list[str]:
        """Names of the tensors that blocks after this one read."""
        return list(dict.fromkeys(n for block in self.blocks[index + 1 :] for n in block.inputs))


def find_cuts(variant: Variant, layers: Collection[str], samples: Dataset, folder: Path) -> Cuts:
    """Blocks that are cut at tensors with one row per sample, and as many samples as fit on disk.

    Args:
        variant: the student.
        layers: names of the layers to fit.
        samples: the slice of the samples.
        folder: a folder on the disk where the tensors will be kept.
    """
    plan, model = variant.student.plan, variant.student.model
    sources = [str(value.name) for value in variant.model.graph.inputs]
    refused: set[str] = set()
    while True:
        blocks = cut_blocks(model, layers, sources, refused=refused)
        names = list(dict.fromkeys(name for block in blocks for name in block.outputs))
        part = bake_between(variant.student, variant.qparams, (), names)
        tensors = Mapped(samples, run_by(part, names))
        # Other cuts may be at further tensors without a row for each sample.
        fresh = set(unstackable(tensors)) - refused
        if not fresh:
            break
        refused |= fresh
    sizes = {name: array.nbytes for name, array in first(Joined(samples, tensors)).items()}
    size = GRAPHS * _largest(blocks, sizes)
    room = min(KEPT_BYTES, DISK_SHARE * shutil.disk_usage(folder).free)
    count = int(max(1, min(len(samples), room // max(size, 1))))
    order = np.random.default_rng(variant.recipe.seed).permutation(len(samples))
    note = ""
    if count < len(samples):
        note = f"{count} of {len(samples)} samples were used: the tensors of more have no room"
    others = {f"{name}{end}": name for name in plan.tensors for end in (RAW, QUANTIZED)}
    return Cuts(blocks, np.sort(order[:count]), note, others)


def _largest(blocks: Sequence[Block], sizes: dict[str, int]) -> int:
    """The most bytes that one sample's kept tensors take at any time."""
    largest = 0
    for i, block in enumerate(blocks[:-1]):
        later = {name for each in blocks[i + 1 :] for name in each.inputs}
        made = {name for each in blocks[: i + 1] for name in each.outputs}
        largest = max(largest, sum(sizes.get(n, 0) for n in {*block.inputs, *(made & later)}))
    return largest


Cut = Callable[[Sequence[str], Sequence[str]], ir.Model]
"""From the names of tensors, and of others that are wanted, to the graph in between."""


class Frontier:
    """Kept tensors of one graph, by name, for some samples; they advance from cut to cut.

    Args:
        model: the graph, whose inputs come first.
        samples: the slice.
        indices: which of its samples.
        folder: an existing, empty folder for the files.
        what: whose tensors they are, for error messages.
    """

    def __init__(
        self, model: ir.Model, samples: Dataset, indices: np.ndarray, folder: Path, what: str
    ) -> None:
        self._folder, self._what = folder, what
        self._count, self._batch, self._made = len(indices), samples.batch, 0
        self._kept: dict[str, Stored] = {}
        feeds = samples.batches(MICRO_BATCH, indices)
        self._store(fed_to(model, each) for each in feeds)

    @property
    def runs(self) -> int:
        """The number of micro-batches."""
        return self._count if self._batch is not None else -(-self._count // MICRO_BATCH)

    def run(self, cut: Cut, inputs: Sequence[str], outputs: Sequence[str]) -> Iterator[Arrays]:
        """Other tensors, computed from the kept ones, micro-batch after micro-batch.

        Args:
            cut: extracts a part of the graph, with its parameters as constants.
            inputs: names of kept tensors.
            outputs: names of the tensors to return; kept ones are not computed again.
        """
        parts: list[Dataset] = [self._kept[name] for name in outputs if name in self._kept]
        wanted = [name for name in outputs if name not in self._kept]
        if wanted:
            part = cut(inputs, wanted)
            # A part may read none of them.
            read = [self._kept[str(value.name)] for value in part.graph.inputs]
            given = Joined(*(read or self._kept.values()))
            parts.append(Mapped(given, run_by(part, wanted)))
        return Joined(*parts).batches(MICRO_BATCH)

    def advance(
        self, cut: Cut, inputs: Sequence[str], outputs: Sequence[str], later: Collection[str]
    ) -> None:
        """Move to the next cut: keep a block's outputs, and delete what no later block reads."""
        fresh = [name for name in outputs if name not in self._kept]
        if fresh:
            self._store(self.run(cut, inputs, fresh))
        for name in [name for name in self._kept if name not in later]:
            self._kept.pop(name).remove()

    def _store(self, batches: Iterable[Arrays]) -> None:
        kept: dict[str, Stored] = {}
        done = 0
        for found in batches:
            count = 1 if self._batch is not None else min(MICRO_BATCH, self._count - done)
            for name, array in found.items():
                if name not in kept:
                    kept[name] = Stored(self._fresh(), self._batch, self._what)
                kept[name].append({name: array}, count)
            done += count
        self._kept |= kept

    def _fresh(self) -> Path:
        folder = self._folder / str(self._made)
        folder.mkdir()
        self._made += 1
        return folder
