"""The tensors between the blocks of teacher and student, kept for some samples."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.forms.variant import Variant
from onnxq.graph.cut import Block, cut_blocks
from onnxq.learn.frozen import DISK_SHARE
from onnxq.runtime.dataset import Dataset, Joined, Mapped, first, no_room, run_by
from onnxq.runtime.session import Arrays, SessionPool
from onnxq.student.build import QUANTIZED, RAW
from onnxq.student.student import bake_between

MICRO_BATCH = 4
"""Samples in one run: a session for each block takes memory for all its tensors."""
SAMPLES = 128
"""Samples that the moments are taken from, at most."""
KEPT_BYTES = 2**31
"""Bytes of the tensors between blocks, at most: where they take more, fewer samples are used."""
MEMORY_BYTES = 2**27
"""Bytes of them that each graph keeps in memory; what is left is kept on disk."""
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
    """The blocks, and as many samples as the moments need and the disk has room for.

    Args:
        variant: the student.
        layers: names of the layers to fit.
        samples: the slice of the samples.
        folder: a folder on the disk where the tensors will be kept.
    """
    plan, model = variant.student.plan, variant.student.model
    sources = [str(value.name) for value in variant.model.graph.inputs]
    blocks = cut_blocks(model, layers, sources)
    names = list(dict.fromkeys(name for block in blocks for name in block.outputs))
    tensors = Mapped(samples, run_by(bake_between(variant.student, variant.qparams, (), names)))
    sizes = {name: array.nbytes for name, array in first(Joined(samples, tensors)).items()}
    size = GRAPHS * _largest(blocks, sizes)
    room = min(KEPT_BYTES, DISK_SHARE * shutil.disk_usage(folder).free)
    most = min(len(samples), max(1, SAMPLES // (samples.batch or 1)))
    count = int(max(1, min(most, room // max(size, 1))))
    order = np.random.default_rng(variant.recipe.seed).permutation(len(samples))
    note = ""
    if count < most:
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
        folder: an existing, empty folder for what has no room in memory.
        what: whose tensors they are, for error messages.

    Attributes:
        runs: the number of micro-batches.
    """

    def __init__(self, folder: Path, what: str) -> None:
        self._folder, self._what = folder, what
        self._kept: dict[str, list[np.ndarray | Path]] = {}
        self._room, self._files = MEMORY_BYTES, 0
        self.runs = 0

    def add(self, feeds: Arrays) -> None:
        """Keep the next micro-batch of the graph's own inputs."""
        self._keep(feeds)
        self.runs += 1

    def run(
        self, cut: Cut, inputs: Sequence[str], outputs: Sequence[str], keep: Collection[str] = ()
    ) -> Iterator[Arrays]:
        """Other tensors, computed from the kept ones, micro-batch after micro-batch.

        Args:
            cut: extracts a part of the graph, with its parameters as constants.
            inputs: names of kept tensors.
            outputs: names of the tensors to return; kept ones are not computed again.
            keep: names of those to keep as well.
        """
        known = [name for name in outputs if name in self._kept]
        wanted = [name for name in outputs if name not in self._kept]
        kept = ({name: self._at(name, i) for name in known} for i in range(self.runs))
        if not wanted:
            yield from kept
            return
        part = cut(inputs, wanted)
        # A part may read none of them.
        read = [str(value.name) for value in part.graph.inputs]
        feeds = ({name: self._at(name, i) for name in read} for i in range(self.runs))
        for found, others in zip(
            SessionPool(part, wanted, merge=False).map(feeds), kept, strict=True
        ):
            self._keep({name: array for name, array in found.items() if name in keep})
            yield {**others, **found}

    def advance(
        self, cut: Cut, inputs: Sequence[str], outputs: Sequence[str], later: Collection[str]
    ) -> None:
        """Move to the next cut: keep a block's outputs, and delete what no later block reads."""
        for _ in self.run(cut, inputs, outputs, outputs):
            pass
        for name in [name for name in self._kept if name not in later]:
            for each in self._kept.pop(name):
                if isinstance(each, Path):
                    each.unlink()
                else:
                    self._room += each.nbytes

    def _at(self, name: str, index: int) -> np.ndarray:
        found = self._kept[name][index]
        return np.load(found) if isinstance(found, Path) else found

    def _keep(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            stays = array.nbytes <= self._room
            self._room -= array.nbytes if stays else 0
            self._kept.setdefault(name, []).append(array if stays else self._saved(array))

    def _saved(self, array: np.ndarray) -> Path:
        path = self._folder / f"{self._files}.npy"
        self._files += 1
        try:
            np.save(path, array)
        except OSError as error:
            raise no_room(self._folder, self._what, array.nbytes, error) from error
        return path
