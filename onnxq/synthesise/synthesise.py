"""The stage between normalise and plan where there are no data: synthetic images.

A generator is trained as long as the time allows, or was saved earlier.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq import __version__
from onnxq.data.preprocess import Preprocess
from onnxq.errors import ModelError
from onnxq.progress import Progress
from onnxq.runtime.dataset import Samples, Stored
from onnxq.runtime.session import Arrays, SessionPool, expose
from onnxq.synthesise.adversarial import check_adversarial
from onnxq.synthesise.distilled import DistilledSynthesis, LossHistory, history_of, loss_text
from onnxq.synthesise.generated import GeneratorTraining, draw
from onnxq.synthesise.generator import (
    LATENT,
    METADATA_KEY,
    NOISE,
    Generator,
    size_generator,
    stand_alone,
)
from onnxq.synthesise.images import Synthesis, collapse_note
from onnxq.synthesise.subject import (
    BATCH,
    TIMED_STEPS,
    TOGETHER,
    Subject,
    Task,
    batch_size,
    find_subject,
)
from onnxq.train.checkpoint import Checkpoint

STEPS = 600
"""Of the generator, where the clock allows."""
LEAST_STEPS = 20
"""However little time there is."""
PLANNED_STEPS = 50
"""Between looks at the clock."""
SAVE_SECONDS = 30.0
"""Between checkpoints, at least."""

DRAWS = 1
"""Keeps the seeds of the final images apart from those of training."""


class Generating:
    """Trains a generator, unless one is given, and generates images with it.

    Args:
        subject: the float model.
        task: how many images, and how.
        folder: for the images.
        progress: told how far it is.
        checkpoint: keeps the state of training; None keeps none.
        resume: whether to resume from the checkpoint.
        generator: a saved one, as a model; None trains one.

    Attributes:
        images: the images, on disk.
        synthesis: how they were generated.

    Raises:
        ModelError: the generator is not one of onnxq's, or does not fit the model's input.
    """

    def __init__(
        self,
        subject: Subject,
        task: Task,
        folder: Path,
        progress: Progress,
        checkpoint: Checkpoint | None,
        resume: bool,
        generator: ir.Model | None = None,
    ) -> None:
        space = subject.space
        if generator is not None:
            check_generator(generator, subject)
        self._subject, self._task, self._progress = subject, task, progress
        part = None if checkpoint is None else checkpoint.part("generator")
        self._checkpoint, self._resume = part, resume
        self._size = space.batch or batch_size(subject.model)
        self.images = Stored(folder, None, "the synthetic images")
        self.synthesis = Synthesis("generator", generator=generator)

    def run(self) -> None:
        """Train the generator where there is none yet, then generate the images."""
        if self.synthesis.generator is None:
            self.synthesis.generator = self._train()
        self._draw(self.synthesis.generator)

    def _train(self) -> ir.Model:
        subject, task, synthesis = self._subject, self._task, self.synthesis
        weights = task.all_weights
        objective = subject.objective(weights)
        generator = size_generator(subject.space, subject.classes)
        training = GeneratorTraining(
            subject.model, generator, objective, STEPS, task.seed, kernels=task.engine
        )
        history = self._load(training)
        began, done = time.monotonic(), 0
        saved = began
        self._progress.start("generator", training.steps)
        while training.done < training.steps:
            history.add(training.step(self._size, TOGETHER))
            done += 1
            if done == TIMED_STEPS or done % PLANNED_STEPS == 0:
                self._plan(training, done, time.monotonic() - began)
            self._progress.at(training.done, loss_text(history.losses[-1]))
            if time.monotonic() - saved > SAVE_SECONDS or training.done == training.steps:
                saved = time.monotonic()
                self._save(training, history)
        self._progress.finish()
        if training.steps < STEPS:
            synthesis.notes.append(
                f"--max-minutes allowed {training.steps} of {STEPS} steps of the generator"
            )
        synthesis.steps, synthesis.losses = training.steps, history.by_kind
        synthesis.minutes = history.minutes
        synthesis.weights = {kind: weights[kind] for kind in objective.kinds}
        return self._finished(generator, training)

    def _plan(self, training: GeneratorTraining, done: int, spent: float) -> None:
        """The number of steps that the time still allows."""
        left = max(0.0, self._task.max_seconds - spent) / max(spent / done, 1e-6)
        possible = training.done + int(left)
        if possible < training.steps:
            training.steps = max(LEAST_STEPS, training.done, possible)
            self._progress.start("generator", training.steps)

    def _finished(self, generator: Generator, training: GeneratorTraining) -> ir.Model:
        opset = self._subject.model.opset_imports[""]
        model = stand_alone(generator, training.parameters, opset)
        made = {
            "version": __version__,
            "batch": self._size,
            "steps": training.steps,
            "weights": self.synthesis.weights,
            "seed": self._task.seed,
        }
        model.metadata_props[METADATA_KEY] = json.dumps(made, sort_keys=True)
        return model

    def _draw(self, model: ir.Model) -> None:
        batch = self._subject.space.batch
        size = batch or json.loads(model.metadata_props[METADATA_KEY])["batch"]
        name = self._subject.space.name
        output = str(model.graph.outputs[0].name)
        count, seed = self._task.images(batch), (self._task.seed, DRAWS)
        self._progress.start("images", count)
        for images in draw(model, output, -(-count // size), size, seed):
            kept = min(len(images), count - len(self.images))
            self.images.append({name: images[:kept]}, kept)
            self._progress.at(len(self.images))
        self._progress.finish()

    def _save(self, training: GeneratorTraining, history: LossHistory) -> None:
        if self._checkpoint is not None:
            self._checkpoint.save({**training.state(), **history.arrays()})

    def _load(self, training: GeneratorTraining) -> LossHistory:
        """Resume from an earlier run, where there was one; returns its losses."""
        state = self._checkpoint.load() if self._checkpoint and self._resume else None
        if state is None:
            return LossHistory()
        training.load_state(state)
        return history_of(state)


def check_generator(model: ir.Model, subject: Subject) -> None:
    """Check that a model is a generator of images that the float model takes.

    Raises:
        ModelError: it is not.
    """
    if METADATA_KEY not in model.metadata_props or NOISE not in {
        value.name for value in model.graph.inputs
    }:
        raise ModelError(
            f"The file of --generator is no generator: it has no metadata '{METADATA_KEY}' or no "
            f"input '{NOISE}' of {LATENT} numbers; give one that --save-generator wrote."
        )
    shape = model.graph.outputs[0].shape
    made = tuple(shape.dims[1:]) if shape is not None else ()
    if made != subject.space.shape:
        raise ModelError(
            f"The generator of --generator gives images of shape {made}; the model's input "
            f"'{subject.space.name}' takes {subject.space.shape}: train one for this model."
        )


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
    generation: DistilledSynthesis | Generating
    if generator is not None or task.method == "generator":
        generation = Generating(subject, task, folder, progress, checkpoint, resume, generator)
    else:
        generation = DistilledSynthesis(subject, task, folder, progress, checkpoint, resume)
    if task.adversarial:
        check_adversarial(subject, generator)
    generation.run()
    images, found = generation.images, generation.synthesis
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
