"""Freeze what is not trained: constants of the graph, and a prefix that runs once.

Inputs of the student that are not trained become constants: ONNX Runtime keeps its own layout for
them, and their gradients are not computed. The part before the first trained input gives the same
tensors in every epoch: they are computed once per sample and kept on disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.graph.cut import split
from onnxq.progress import Progress
from onnxq.runtime.dataset import Dataset, Joined, Mapped, Stored, fed_to, first, run_by
from onnxq.runtime.session import Arrays
from onnxq.student.student import with_constants
from onnxq.train.teacher import MICRO_BATCH

BAKED_BYTES = 2**27
"""Bytes of constants in a graph at most: a gradient graph is copied several times on its way."""
DISK_SHARE = 0.25
"""Share of the free disk that kept tensors may take."""

WHAT = "the tensors before the trained layers"
AGAIN = "the layers before the trained ones run in every step"

CLOSE = 1e-3
"""Relative difference up to which a tensor of two samples is that of each of them, stacked."""

Slices = tuple[Joined, Joined]
"""The samples to train on and those held out, each joined with its targets."""


@dataclass(frozen=True)
class TrainableSuffix:
    """The trainable suffix of a loss graph, and its feeds.

    Attributes:
        model: the loss graph from the cut on.
        train: its feeds on the training slice.
        held_out: its feeds on the held-out samples.
        constants: inputs that are not trained, and too large to be constants of the graph.
        note: why the layers before the cut run in every step; '' where they don't.
    """

    model: ir.Model
    train: Dataset
    held_out: Dataset
    constants: Arrays = field(default_factory=dict)
    note: str = ""


def freeze(
    model: ir.Model,
    fixed: Mapping[str, np.ndarray],
    moving: frozenset[str],
    slices: Slices,
    folder: Path,
    progress: Progress,
    *,
    keep: bool = True,
) -> TrainableSuffix:
    """The suffix of a loss graph that depends on its trained inputs.

    Args:
        model: the student with its loss; it isn't changed.
        fixed: arrays of the inputs that are not trained.
        moving: names of the trained inputs.
        slices: the samples to train on and the held-out ones, with their targets.
        folder: an existing folder for the kept tensors.
        progress: told how far the prefix is.
        keep: whether samples are the same in every epoch, so that their tensors may be kept.

    Raises:
        OutputError: the disk ran full.
    """
    baked = _small(fixed)
    constants = {name: value for name, value in fixed.items() if name not in baked}
    whole = with_constants(model, baked)
    if not keep:
        return TrainableSuffix(whole, *slices, constants)
    # What the loss makes of the targets alone is not worth keeping.
    parts = split(whole, moving | first(slices[0].parts[1]).keys())
    if parts.prefix is None:
        return TrainableSuffix(whole, *slices, constants)
    prefix = run_by(parts.prefix, parts.cut, constants)
    at_cut = [Mapped(given.parts[0], prefix) for given in slices]
    note = _refusal(at_cut, folder)
    if note:
        return TrainableSuffix(whole, *slices, constants, f"{AGAIN}: {note}")

    def kept(name: str, given: Joined, tensors: Dataset) -> Dataset:
        (folder / name).mkdir()
        stored = Stored(folder / name, tensors.batch, WHAT)
        progress.start(f"frozen layers, {name} slice", len(tensors))
        stored.extend(tensors, MICRO_BATCH, progress.at)
        progress.finish()
        return _fed(parts.suffix, given, stored)

    train, held_out = map(kept, ("train", "held-out"), slices, at_cut)
    return TrainableSuffix(parts.suffix, train, held_out, fed_to(parts.suffix, constants))


def _fed(suffix: ir.Model, given: Joined, kept: Stored) -> Dataset:
    """The feeds of the suffix; the samples are read only where it takes them."""
    samples, targets = given.parts
    if not fed_to(suffix, first(samples)):
        return Joined(kept, targets)
    own = Mapped(samples, lambda batches, _: (fed_to(suffix, feeds) for feeds in batches))
    return Joined(own, targets, kept)


def _small(fixed: Mapping[str, np.ndarray]) -> Arrays:
    """As many of the arrays as fit into the graph as constants, smallest first."""
    found: Arrays = {}
    left = BAKED_BYTES
    for name, value in sorted(fixed.items(), key=lambda item: item[1].nbytes):
        left -= value.nbytes
        if left >= 0:
            found[name] = value
    return found


def _refusal(at_cut: Sequence[Dataset], folder: Path) -> str:
    """Why the tensors at the cut can't be kept; '' where they can."""
    names = unstackable(at_cut[0])
    if names:
        return f"'{names[0]}' does not hold the same number of rows for each sample"
    one = sum(array.nbytes for array in first(at_cut[0]).values())
    size = one * sum(map(len, at_cut))
    if size > DISK_SHARE * shutil.disk_usage(folder).free:
        return f"their tensors take {size:,} bytes; set TMPDIR to a folder with more room"
    return ""


def unstackable(tensors: Dataset) -> list[str]:
    """The tensors of which the rows of two samples are not those of each, one after the other."""
    if tensors.batch is not None or len(tensors) < 2:
        return []
    pair = np.arange(2)
    alone, both = list(tensors.batches(1, pair)), next(tensors.batches(2, pair))
    return [name for name in both if not _stacks([each[name] for each in alone], both[name])]


def _stacks(alone: list[np.ndarray], both: np.ndarray) -> bool:
    if not both.ndim or any(each.shape[1:] != both.shape[1:] for each in alone):
        return False
    stacked = np.concatenate(alone)
    if stacked.shape != both.shape or alone[0].shape != alone[1].shape:
        return False
    largest = float(np.abs(stacked.astype(np.float64)).max(initial=0.0))
    return bool(np.allclose(both, stacked, rtol=CLOSE, atol=CLOSE * largest, equal_nan=True))
