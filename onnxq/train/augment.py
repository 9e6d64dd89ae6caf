"""Augmentation: training images that are flipped and shifted anew in each epoch.

The teacher's outputs are computed anew for the images of each epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnxq.data.arrays import InputSpec
from onnxq.data.preprocess import Preprocess
from onnxq.errors import RecipeError
from onnxq.options.recipe import Recipe
from onnxq.options.table import Augment
from onnxq.runtime.session import Arrays
from onnxq.student.qparams import QParams
from onnxq.train.teacher import Teacher


class Transform(Protocol):
    """Replaces the training samples of an epoch. Only `apply` has to be written."""

    def apply(
        self, batches: Iterator[Arrays], indices: Iterator[np.ndarray], epoch: int
    ) -> Iterator[Arrays]:
        """The batches with their samples replaced, and with the teacher's outputs on the new ones.

        Args:
            batches: of the training slice.
            indices: of the samples in each; not all of them where an epoch is resumed.
            epoch: the number of the epoch, from 0.
        """

    def begin(self, qparams: QParams, late: Callable[[], bool]) -> None:
        """Called when an epoch begins.

        Args:
            qparams: the student's current quantization parameters.
            late: whether the time is up.
        """
        return None

    def text(self) -> str:
        """Details for progress."""
        return ""

    def state(self) -> Arrays:
        """The state that later epochs depend on, for a checkpoint."""
        return {}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore a saved state."""
        return None


AUTO_KINDS: tuple[Augment, ...] = ("shift",)
"""The augmentation of synthetic images: a student would memorize their noise otherwise."""
LARGEST_SHIFT = 8
"""An image is shifted by at most 1 / LARGEST_SHIFT of its side."""


@dataclass(frozen=True)
class ImageLayout:
    """The input and the axes of an image.

    Attributes:
        name: the model's input.
        height: the axis of rows.
        width: the axis of columns.
    """

    name: str
    height: int
    width: int


def chosen_kinds(augment: Collection[Augment], synthetic: bool) -> tuple[Augment, ...]:
    """The kinds of augmentation that a recipe's option stands for.

    Args:
        augment: as in a recipe.
        synthetic: whether weights are trained on synthetic images.
    """
    if "auto" in augment:
        return AUTO_KINDS if synthetic else ()
    return tuple(kind for kind in augment if kind != "none")


def image_layout(inputs: Sequence[InputSpec], preprocess: Preprocess | None) -> ImageLayout | None:
    """The layout of the model's only input; None where it takes no image.

    The channel axis is that of the preprocessing; without one, the axis of size 1 or 3.
    """
    spec = inputs[0]
    if len(inputs) > 1 or len(spec.shape) != 4:
        return None
    if preprocess is not None:
        return _layout(spec, 1 if preprocess.layout == "nchw" else 3)
    axis = next((axis for axis in (1, 3) if spec.shape[axis] in (1, 3)), None)
    return None if axis is None else _layout(spec, axis)


def check_augmentation(
    augment: Collection[Augment], inputs: Sequence[InputSpec], preprocess: Preprocess | None
) -> None:
    """Raise RecipeError where a recipe augments images and the model does not take one."""
    if chosen_kinds(augment, synthetic=False) and image_layout(inputs, preprocess) is None:
        listed = ", ".join(f"'{each.name}' {each}" for each in inputs)
        raise RecipeError(
            f"The option 'augment' changes images and the model takes {listed}; expected one input "
            "of 4 dimensions with 1 or 3 channels: leave the option out."
        )


def _layout(spec: InputSpec, channel_axis: int) -> ImageLayout:
    height, width = (axis for axis in (1, 2, 3) if axis != channel_axis)
    return ImageLayout(spec.name, height, width)


class Augmentation(Transform):
    """Flips and shifts images at random, anew in each epoch.

    Args:
        teacher: computes the outputs on the augmented images.
        kinds: 'flip' mirrors left and right with probability 1/2; 'shift' shifts an image by up to
            an eighth of each side, with the pixels of its edges repeated.
        layout: the input and the axes of an image.
        seed: of the random numbers.
    """

    def __init__(
        self, teacher: Teacher, kinds: Collection[str], layout: ImageLayout, seed: int
    ) -> None:
        self._teacher, self._kinds = teacher, frozenset(kinds)
        self._layout, self._seed = layout, seed

    def apply(
        self, batches: Iterator[Arrays], indices: Iterator[np.ndarray], epoch: int
    ) -> Iterator[Arrays]:
        """The augmented batches; arguments as of `Transform.apply`.

        The random numbers depend on the seed, the epoch and the index of a sample alone.
        """
        name = self._layout.name

        def drawn() -> Iterator[Arrays]:
            for feeds, chosen in zip(batches, indices, strict=True):
                group = len(feeds[name]) // len(chosen)
                samples = (chosen[:, None] * group + np.arange(group)).reshape(-1)
                pairs = zip(feeds[name], samples.tolist(), strict=True)
                yield {**feeds, name: np.stack([self._image(*pair, epoch) for pair in pairs])}

        return self._teacher.with_targets(drawn())

    def _image(self, image: np.ndarray, sample: int, epoch: int) -> np.ndarray:
        """The augmented image of one epoch, without the batch axis."""
        rng = np.random.default_rng((self._seed, epoch, sample))
        height, width = self._layout.height - 1, self._layout.width - 1
        # Drawn in any case: what one kind does, does not depend on the other.
        mirrored = rng.random() < 0.5
        if "flip" in self._kinds and mirrored:
            image = flip(image, width)
        if "shift" in self._kinds:
            for axis in (height, width):
                most = image.shape[axis] // LARGEST_SHIFT
                image = shift(image, int(rng.integers(-most, most + 1)), axis)
        return image


def flip(image: np.ndarray, axis: int) -> np.ndarray:
    """The image reversed along an axis: y_i = x_(n-1-i)."""
    return np.flip(image, axis)


def shift(image: np.ndarray, pixels: int, axis: int) -> np.ndarray:
    """The image shifted along an axis, its edge repeated: y_i = x_clip(i - pixels, 0, n-1)."""
    size = image.shape[axis]
    return np.take(image, np.clip(np.arange(size) - pixels, 0, size - 1), axis)


def recipe_augmentation(
    recipe: Recipe,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None,
    teacher: Teacher,
    *,
    synthetic: bool,
) -> Augmentation | None:
    """How a recipe changes training samples in each epoch; None where it leaves them.

    Args:
        recipe: the options.
        inputs: what the model takes.
        preprocess: how an image becomes its input.
        teacher: computes the outputs on the augmented ones.
        synthetic: whether weights are trained on synthetic images.
    """
    kinds = chosen_kinds(recipe.augment, synthetic)
    layout = image_layout(inputs, preprocess)
    if layout is None or not kinds:
        return None
    return Augmentation(teacher, kinds, layout, recipe.seed)
