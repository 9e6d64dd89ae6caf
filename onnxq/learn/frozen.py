"""Freeze what is not trained: constants of the graph, and a prefix that runs once.

Inputs of the student that are not trained become constants: ONNX Runtime keeps its own layout for
them, and their gradients are not computed. The part before the first trained input gives the same
tensors in every epoch: they are computed once per sample and kept on disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.graph.cut import split
from onnxq.progress import Progress
from onnxq.runtime.session import Arrays
from onnxq.student.student import with_constants
from onnxq.train.kept_tensors import KeptTensors, Prefix, read_by
from onnxq.train.loss import target_name
from onnxq.train.teacher import Targeted, TeacherOutputs

BAKED_BYTES = 2**27
"""Bytes of constants in a graph at most: a gradient graph is copied several times on its way."""
DISK_SHARE = 0.25
"""Share of the free disk that kept tensors may take."""

AGAIN = "the layers before the trained ones run in every step"

Slices = tuple[TeacherOutputs, TeacherOutputs]


@dataclass(frozen=True)
class Remainder:
    """The trainable suffix of a loss graph, and its feeds.

    Attributes:
        model: the loss graph from the cut on.
        train: its feeds on the training slice.
        held_out: its feeds on the held-out samples.
        constants: inputs that are not trained, and too large to be constants of the graph.
        note: why the layers before the cut run in every step; '' where they don't.
    """

    model: ir.Model
    train: Targeted
    held_out: Targeted
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
) -> Remainder:
    """The suffix of a loss graph that depends on its trained inputs.

    Args:
        model: the student with its loss; it isn't changed.
        fixed: arrays of the inputs that are not trained.
        moving: names of the trained inputs.
        slices: the samples to train on and the held-out ones.
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
        return Remainder(whole, *slices, constants)
    # What the loss makes of the targets alone is not worth keeping.
    parts = split(whole, moving | {target_name(name) for name in slices[0].logits})
    if parts.prefix is None:
        return Remainder(whole, *slices, constants)
    prefix = Prefix(parts.prefix, parts.cut, constants)
    note = _refusal(prefix, slices, folder)
    if note:
        return Remainder(whole, *slices, constants, f"{AGAIN}: {note}")

    def kept(name: str, part: TeacherOutputs) -> KeptTensors:
        (folder / name).mkdir()
        progress.start(f"frozen layers, {name} slice", part.positions)
        found = KeptTensors(prefix, parts.suffix, part, folder / name, progress.at)
        progress.finish()
        return found

    train, held_out = kept("train", slices[0]), kept("held-out", slices[1])
    return Remainder(parts.suffix, train, held_out, read_by(parts.suffix, constants))


def _small(fixed: Mapping[str, np.ndarray]) -> Arrays:
    """As many of the arrays as fit into the graph as constants, smallest first."""
    found: Arrays = {}
    left = BAKED_BYTES
    for name, value in sorted(fixed.items(), key=lambda item: item[1].nbytes):
        left -= value.nbytes
        if left >= 0:
            found[name] = value
    return found


def _refusal(prefix: Prefix, slices: Slices, folder: Path) -> str:
    """Why the tensors at the cut can't be kept; '' where they can."""
    name = prefix.unstackable(slices[0])
    if name:
        return f"'{name}' does not hold the same number of rows for each sample"
    size = prefix.nbytes(slices[0]) * sum(part.positions for part in slices)
    if size > DISK_SHARE * shutil.disk_usage(folder).free:
        return f"their tensors take {size:,} bytes; set TMPDIR to a folder with more room"
    return ""
