"""Training samples that are new in every epoch: augmented, or from a generator.

In each epoch a share of the samples, chosen at random, is replaced by new images. The others stay
as they were generated first, so that nothing learned on them is forgotten. The new images are on
disk for one epoch: neither memory nor disk use grows with the number of epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import tee
from pathlib import Path
from typing import Protocol

import numpy as np

from onnxq.forms.variant import Variant
from onnxq.learn.learn import learns_weights
from onnxq.normalise.pipeline import Original
from onnxq.options.recipe import Recipe
from onnxq.options.table import FIXED
from onnxq.runtime.dataset import Dataset, Stored
from onnxq.runtime.session import Arrays, Feeds
from onnxq.student.qparams import QParams
from onnxq.student.student import Student
from onnxq.synthesise.adversarial import AdversarialGenerator
from onnxq.synthesise.images import Synthesis
from onnxq.synthesise.subject import find_subject, recipe_task
from onnxq.train.augment import Augmentation, Transform, recipe_augmentation
from onnxq.train.teacher import Targets, Teacher

SHARE = 0.5
"""The share of an epoch's samples that is replaced."""


class ImageSource(Protocol):
    """A generator of images that goes on training.

    Attributes:
        name: the model's input that takes the images.
    """

    name: str

    def learn(self, feeds: Feeds, count: int, late: Callable[[], bool]) -> None:
        """Train against the student on `count` images, or until the time limit.

        Args:
            feeds: the student's parameter inputs.
            count: how many images.
            late: returns whether the time limit is reached.
        """

    def draw(self, count: int) -> Iterator[np.ndarray]:
        """Generate `count` images, in batches; the same ones until it trains again."""

    def text(self) -> str:
        """The state in words, for progress."""

    def state(self) -> Arrays:
        """Arrays that later images depend on, for a checkpoint."""

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Resume from the arrays of a checkpoint."""


class FreshImages(Transform):
    """Replaces a share of each epoch's samples by newly generated images.

    Args:
        samples: the training slice.
        teacher: computes the outputs on the new images.
        source: generates them.
        student: the student that the generator is trained against.
        folder: an existing folder for one epoch's images.
        seed: of the choice of the samples that are replaced.
        further: applied to all samples afterwards; None applies nothing.
        share: the share of samples that is replaced, from 0 to 1; at least one sample is.
    """

    def __init__(
        self,
        samples: Dataset,
        teacher: Teacher,
        source: ImageSource,
        student: Student,
        folder: Path,
        seed: int,
        further: Transform | None = None,
        share: float = SHARE,
    ) -> None:
        self._teacher, self._source, self._student = teacher, source, student
        self._folder, self._seed, self._further = folder, seed, further
        self._count, self._group = len(samples), samples.batch or 1
        self._replaced = max(1, round(share * self._count))
        self._images: Stored | None = None

    def begin(self, qparams: QParams, late: Callable[[], bool]) -> None:
        """Train the generator against the student with these quantization parameters."""
        feeds = self._student.feeds(qparams)
        self._source.learn(feeds, self._replaced * self._group, late)

    def apply(
        self, batches: Iterator[Arrays], indices: Iterator[np.ndarray], epoch: int
    ) -> Iterator[Arrays]:
        """The batches with new images in some places; arguments as of `Transform.apply`."""
        indices, again = tee(indices)
        mixed = self._mixed(batches, indices, epoch)
        if self._further is not None:
            return self._further.apply(mixed, again, epoch)
        return self._teacher.with_targets(mixed)

    def text(self) -> str:
        """Details of the source, for progress."""
        return self._source.text()

    def state(self) -> Arrays:
        """The source's state."""
        return self._source.state()

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore a saved state."""
        self._source.load_state(state)

    def _mixed(
        self, batches: Iterator[Arrays], indices: Iterator[np.ndarray], epoch: int
    ) -> Iterator[Arrays]:
        name, group, fresh = self._source.name, self._group, self._drawn()
        rng = np.random.default_rng((self._seed, epoch))
        replaced = rng.permutation(self._count)[: self._replaced]
        places = {int(index): place for place, index in enumerate(replaced)}
        for feeds, chosen in zip(batches, indices, strict=True):
            images = feeds[name].copy()
            for row, index in enumerate(chosen):
                place = places.get(int(index))
                if place is not None:
                    own = np.arange(place * group, (place + 1) * group)
                    images[row * group : (row + 1) * group] = fresh.at(own)[name]
            yield {**feeds, name: images}

    def _drawn(self) -> Stored:
        """The new images of this epoch, on disk."""
        if self._images is not None:
            self._images.remove()
        count = self._replaced * self._group
        self._images = Stored(self._folder, None, "the generator's images")
        for images in self._source.draw(count):
            self._images.append({self._source.name: images}, len(images))
        return self._images


GENERATOR_STAYED = (
    "the generator was not trained with the student, since nothing was trained by gradients; "
    "--learn steps or --learn weights does so"
)


def augmentation(
    variant: Variant, teacher: Teacher, original: Original, *, synthetic: bool
) -> Augmentation | None:
    """The augmentation of a recipe for a variant; None where images stay unchanged.

    Args:
        variant: its plan says what is trained.
        teacher: computes the outputs on augmented images.
        original: the model, normalised.
        synthetic: whether the images are synthetic.
    """
    recipe = variant.recipe
    shared = recipe.bias_centroids is not None
    weights = learns_weights(
        recipe.learn, variant.student.plan, shared_biases=shared, effort=recipe.effort
    )
    return recipe_augmentation(
        recipe, original.inputs, original.preprocess, teacher, synthetic=synthetic and weights
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
    found = augmentation(variant, targets.teacher, original, synthetic=synthesis is not None)
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
