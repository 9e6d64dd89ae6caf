"""How a recipe changes the training samples in each epoch."""

from __future__ import annotations

import math
from pathlib import Path

from onnxq.forms.variant import Variant
from onnxq.learn.fresh import FreshImages
from onnxq.learn.learn import learns_weights
from onnxq.normalise.original import Original
from onnxq.options.recipe import Recipe
from onnxq.options.table import FIXED
from onnxq.synthesise.adversarial import AdversarialGenerator
from onnxq.synthesise.images import Synthesis
from onnxq.synthesise.subject import find_subject, recipe_task
from onnxq.train.augment import Augmentation, Transform, recipe_augmentation
from onnxq.train.teacher import Targets, Teacher

GENERATOR_STAYED = (
    "the generator was not trained with the student, since nothing was trained by gradients; "
    "--learn steps or --learn weights does so"
)


def augmentation(
    variant: Variant, teacher: Teacher, original: Original, *, made: bool
) -> Augmentation | None:
    """The augmentation of a recipe for a variant; None where images stay unchanged.

    Args:
        variant: its plan says what is trained.
        teacher: computes the outputs on augmented images.
        original: the model, normalised.
        made: whether the images are synthetic.
    """
    recipe = variant.recipe
    shared = recipe.bias_centroids is not None
    weights = learns_weights(recipe.learn, variant.student.plan, shared_biases=shared)
    return recipe_augmentation(
        recipe, original.inputs, original.preprocess, teacher, synthetic=made and weights
    )


def training_transform(
    variant: Variant,
    targets: Targets,
    original: Original,
    synthesis: Synthesis | None,
    folder: Path,
) -> Transform | None:
    """An adversarial generator, then augmentation; None where samples stay unchanged.

    Args:
        variant: the variant to train.
        targets: the samples, with the original's outputs.
        original: the model, normalised.
        synthesis: how samples were generated; None where they were given.
        folder: an existing one, for the generator's images.
    """
    found = augmentation(variant, targets.teacher, original, made=synthesis is not None)
    if variant.recipe.generator_mode == FIXED:
        return found
    assert synthesis is not None
    subject = find_subject(original.normalised.unfolded, original.preprocess)
    # It learns for as long as the student does.
    task = recipe_task(variant.recipe, original.least, math.inf)
    source = AdversarialGenerator(subject, task, synthesis, variant.student.model)
    place = folder / "fresh"
    place.mkdir()
    return FreshImages(
        targets.train, targets.teacher, source, variant.student, place, variant.recipe.seed, found
    )


def notes_on_generator(recipe: Recipe, synthesis: Synthesis | None) -> list[str]:
    """A note where a generator should have been trained with the student, and was not."""
    stayed = synthesis is not None and not synthesis.tuning
    return [GENERATOR_STAYED] if stayed and recipe.generator_mode != FIXED else []
