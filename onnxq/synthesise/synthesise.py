"""The stage between normalise and plan where there are no data: synthetic images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.data.preprocess import Preprocess
from onnxq.progress import Progress
from onnxq.runtime.dataset import Samples
from onnxq.runtime.session import Arrays, SessionPool, expose
from onnxq.synthesise.adversarial import check_adversarial
from onnxq.synthesise.distilled import DistilledSynthesis
from onnxq.synthesise.generating import Generating
from onnxq.synthesise.images import Synthesis, collapse_note
from onnxq.synthesise.subject import BATCH, Subject, Task, find_subject
from onnxq.train.checkpoint import Checkpoint

PICTURES = 64
"""Images of a contact sheet at most."""


def synthesise(
    unfolded: ir.Model,
    preprocess: Preprocess | None,
    task: Task,
    folder: Path,
    progress: Progress,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
    generator: ir.Model | None = None,
) -> tuple[Samples, Synthesis]:
    """Synthetic images as samples in a folder.

    Args:
        unfolded: the float model, normalised, with its BatchNormalization.
        preprocess: how an image becomes its input.
        task: how many images, and how.
        folder: an existing one.
        progress: told how far it is.
        checkpoint: keeps finished images; None keeps none.
        resume: whether to resume from the checkpoint.
        generator: a saved one that generates them; None follows the task.

    Raises:
        ModelError: the model's input can't be synthesized, or it has neither statistics nor
            classes.
        OutputError: the disk is full.
    """
    subject = find_subject(unfolded, preprocess)
    making: DistilledSynthesis | Generating
    if generator is not None or task.method == "generator":
        making = Generating(subject, task, folder, progress, checkpoint, resume, generator)
    else:
        making = DistilledSynthesis(subject, task, folder, progress, checkpoint, resume)
    if task.adversarial:
        check_adversarial(subject, generator)
    making.run()
    images, found = making.images, making.synthesis
    samples = Samples(images.read, np.arange(len(images)), subject.space.batch)
    found.count = samples.count
    found.notes[:0] = subject.notes
    _look(subject, samples, found)
    if (note := collapse_note(found.classes)) is not None:
        found.notes.append(note)
    return samples, found


def _look(subject: Subject, samples: Samples, found: Synthesis) -> None:
    """The classes of all images, and pictures of the first."""
    space = subject.space
    shown = samples.take(PICTURES)
    if subject.logits is not None:
        rows = _logits(subject, samples)
        decisions = rows.argmax(axis=1)
        found.classes = np.bincount(decisions, minlength=rows.shape[1]).tolist()
        found.decisions = decisions[shown.places].tolist()
    if space.axes is not None:
        images = np.concatenate([batch[space.name] for batch in shown.batches(BATCH)])
        found.pictures = space.pixels(images)


def _logits(subject: Subject, samples: Samples) -> np.ndarray:
    names = [str(subject.logits)]
    pool = SessionPool(expose(subject.model, names), names)
    outputs: list[Arrays] = list(pool.map(samples.batches(BATCH)))
    rows: np.ndarray = np.concatenate([each[names[0]] for each in outputs])
    return rows.reshape(len(rows), -1)
