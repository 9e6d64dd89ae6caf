"""Where the tensors between blocks can be kept, and for how many samples."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onnxq.learn.frozen import DISK_SHARE
from onnxq.learn.kept_tensors import stacks
from onnxq.learn.teacher import TeacherOutputs
from onnxq.learn.variants import Variant
from onnxq.rewrite.blocks import Block, cut_blocks
from onnxq.rewrite.student import QUANTIZED, RAW, bake_between
from onnxq.session import Arrays, SessionPool

KEPT_BYTES = 2**31
"""Bytes of the tensors between blocks, at most: where they take more, fewer samples are used."""
GRAPHS = 2
"""Original and student."""


@dataclass(frozen=True)
class Cuts:
    """The blocks of a student, and the samples to go through them.

    Attributes:
        blocks: of the student's graph.
        positions: of the samples, in a slice.
        note: why they are fewer than there are; empty otherwise.
        names: the original's name of a tensor of the student, where it differs.
    """

    blocks: list[Block]
    positions: np.ndarray
    note: str = ""
    names: dict[str, str] = field(default_factory=dict)

    def originals(self, names: Iterable[str]) -> list[str]:
        """The original's tensors in the place of these of the student."""
        return list(dict.fromkeys(self.names.get(name, name) for name in names))

    def later(self, index: int) -> list[str]:
        """The tensors that blocks behind one read."""
        return list(dict.fromkeys(n for block in self.blocks[index + 1 :] for n in block.inputs))


def find_cuts(
    variant: Variant, layers: Collection[str], train: TeacherOutputs, folder: Path
) -> Cuts:
    """Blocks whose tensors hold a row for each sample, and as many samples as there is room for.

    Args:
        variant: the student.
        layers: names of the layers that are fitted.
        train: the slice of the samples.
        folder: on the disk where the tensors will be kept.
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
    part = bake_between(variant.student, variant.quantizers, (), names)
    read = {value.name for value in part.graph.inputs}
    feeds = next(source.batches(chosen, size))
    return SessionPool(part, names, 1).run({k: v for k, v in feeds.items() if k in read})


def _largest(blocks: Sequence[Block], sizes: dict[str, int]) -> int:
    """Bytes of one position where the most tensors are kept at once."""
    largest = 0
    for i, block in enumerate(blocks[:-1]):
        later = {name for each in blocks[i + 1 :] for name in each.inputs}
        made = {name for each in blocks[: i + 1] for name in each.outputs}
        largest = max(largest, sum(sizes.get(n, 0) for n in {*block.inputs, *(made & later)}))
    return largest
