"""The float model that synthetic images are generated for, its losses, and the synthesis task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.data.preprocess import Preprocess
from onnxq.engine import ungradable_nodes
from onnxq.errors import ModelError, RecipeError
from onnxq.load.interface import input_specs
from onnxq.numerics.distances import holds_decisions, look_like_probabilities
from onnxq.options.recipe import Recipe
from onnxq.options.table import AUTO, FIXED, EngineName
from onnxq.runtime.session import expose, open_session
from onnxq.synthesise.float_student import find_float_student
from onnxq.synthesise.images import ImageSpace, image_space
from onnxq.synthesise.objective import (
    FOLDED,
    LOSS,
    BatchNorm,
    Student,
    SynthesisObjective,
    find_batch_norms,
)
from onnxq.train.budget import fix_sizes, sample_bytes, shard_size
from onnxq.train.objective import find_logits

PROBE = 2
"""Samples of noise on which it is seen whether a model is a classifier."""


@dataclass(frozen=True)
class Subject:
    """A float model whose training data are not available.

    Attributes:
        model: unfolded, with an input of known size.
        space: of its input.
        batch_norms: the layers with statistics that images can match.
        logits: the tensor of a classifier's logits; None for other models.
        classes: the number of classes; 0 for other models.
        notes: sentences for the user.
    """

    model: ir.Model
    space: ImageSpace
    batch_norms: list[BatchNorm]
    logits: str | None
    classes: int
    notes: list[str]

    def objective(
        self, weights: Mapping[str, float], student: Student | None = None
    ) -> SynthesisObjective:
        """The losses that this model can have.

        Args:
            weights: by kind.
            student: of the adversarial loss; None means one of the same architecture.

        Raises:
            ModelError: no gradient leads from the losses to the images.
            RecipeError: all of them are switched off.
        """
        if student is None and weights.get("adversarial") and self.logits is not None:
            student = find_float_student(self.model, self.space.name, self.logits)
        found = SynthesisObjective(weights, self.batch_norms, self.logits, student)
        if not found.kinds:
            raise RecipeError(
                "The option 'synthesis_losses' switches off all losses that this model can "
                "have; leave 'inception' or 'bn' above 0."
            )
        attached = found.attach(self.model)
        if refused := ungradable_nodes(attached, [self.space.name], [LOSS]):
            name, op_type, reason = refused[0]
            raise ModelError(
                f"--data-free needs gradients from the outputs to the images, and none passes the "
                f"node '{name}' ({op_type}): {reason}; give samples with --data."
            )
        return found


def find_subject(model: ir.Model, preprocess: Preprocess | None) -> Subject:
    """The parts of a model that synthetic images can be optimized by.

    Args:
        model: normalised, BatchNormalization not folded.
        preprocess: how images become its input.

    Raises:
        ModelError: its input can't be synthesized, or it has neither statistics nor classes.
    """
    space = image_space(input_specs(model), preprocess)
    noise = space.noise(np.random.default_rng(0), space.batch or PROBE)
    model = fix_sizes(model, {space.name: noise})
    norms = find_batch_norms(model)
    logits, classes = _find_classifier(model, space.name, noise)
    if not norms and logits is None:
        raise ModelError(
            "--data-free can't generate images, since the model is no classifier (one output of "
            f"logits) and {FOLDED}; else give samples with --data."
        )
    notes = [] if norms else [FOLDED]
    if preprocess is None:
        notes.append(
            "the preprocessing is unknown, so synthetic samples have no range: give --mean and "
            "--std where the model takes images"
        )
    return Subject(model, space, norms, logits, classes, notes)


def _find_classifier(model: ir.Model, name: str, noise: np.ndarray) -> tuple[str | None, int]:
    """The tensor of the logits and the number of classes, as its outputs on noise show."""
    names = find_logits(model)
    if len(names) != 1:
        return None, 0
    (rows,) = open_session(expose(model, names)).run(None, {name: noise})
    decides = holds_decisions(rows.shape, len(noise))
    if not decides or look_like_probabilities(rows.reshape(len(noise), -1)):
        return None, 0
    return names[0], rows.shape[1]


BATCH = 64
"""Images that share their statistics, where memory allows."""
MOST_BYTES = 2**30
"""Of the activations of such a batch; fixed, so that memory decides only where it is scarce."""
LEAST_BATCH = 8
"""Fewer have no statistics to speak of."""
COPIES = 2
"""Arrays per activation: values and gradients."""
TOGETHER = 2
"""Batches in work side by side; fixed, so that they are the same ones on any number of cores."""
TIMED_STEPS = 5
"""After which it is known how long a step takes."""

WEIGHTS: Mapping[str, float] = {"inception": 10.0, "bn": 10.0}
"""Of the losses, by kind."""


def batch_size(model: ir.Model) -> int:
    """The number of images that share their statistics.

    64, or fewer where their activations would take more than a gigabyte or than memory allows.
    """
    fits = MOST_BYTES // max(sample_bytes(model), 1)
    return max(2, shard_size(model, max(LEAST_BATCH, min(BATCH, fits)), COPIES))


@dataclass(frozen=True)
class Task:
    """How many images to generate, and how.

    Attributes:
        count: most images.
        weights: of losses by kind, where they differ from the method's own.
        seed: of the noise.
        max_seconds: time limit.
        method: 'generator', 'distilled' or 'auto'.
        adversarial: whether the generator is trained on with the student.
        engine: what computes gradients.
    """

    count: int
    weights: Mapping[str, float]
    seed: int
    max_seconds: float
    method: str = "auto"
    adversarial: bool = False
    engine: EngineName = AUTO

    @property
    def all_weights(self) -> dict[str, float]:
        """The weight of every loss, by kind."""
        return {**WEIGHTS, **self.weights}

    def images(self, batch: int | None) -> int:
        """The number of images to generate: whole batches, where the model fixes the batch."""
        return self.count if batch is None else max(1, self.count // batch) * batch


def recipe_task(recipe: Recipe, least: int, max_seconds: float) -> Task:
    """The synthesis task of a recipe.

    Args:
        recipe: the options.
        least: least number of images: a batch of the model.
        max_seconds: time limit.
    """
    return Task(
        max(recipe.samples, least),
        recipe.synthesis_losses or {},
        recipe.seed,
        max_seconds,
        recipe.synthesis,
        recipe.generator_mode != FIXED,
        recipe.engine,
    )
