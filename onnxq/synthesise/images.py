"""Synthetic images: their shape and range, and the metrics of their generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.data.arrays import InputSpec
from onnxq.data.preprocess import Preprocess
from onnxq.errors import ModelError
from onnxq.runtime.dataset import Samples
from onnxq.runtime.session import Feeds

CENTRE, SPREAD = 0.5, 0.25
"""Mean and standard deviation of the pixels that noise starts with, scaled to 0-1."""


@dataclass(frozen=True)
class ImageSpace:
    """Shape and range of one input of the model.

    Attributes:
        name: of the input.
        shape: of one sample.
        batch: the only batch size that the model takes; None where it is free.
        centre: the initial mean, float32, broadcast to a sample.
        spread: the initial standard deviation, as `centre`.
        low: the least value, as `centre`; None where unknown.
        high: the largest value, likewise.
        axes: of height and width in a batch; None where samples are no images.
        bgr: whether channels are blue, green, red.
    """

    name: str
    shape: tuple[int, ...]
    batch: int | None
    centre: np.ndarray
    spread: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    axes: tuple[int, int] | None
    bgr: bool = False

    def noise(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Normally distributed samples within the range, float32 `(count, *shape)`."""
        drawn = rng.standard_normal((count, *self.shape), np.float32)
        return self.clip(drawn * self.spread + self.centre)

    def clip(self, images: np.ndarray) -> np.ndarray:
        """The images within the range, in place."""
        if self.low is not None:
            np.clip(images, self.low, self.high, out=images)
        return images

    def pixels(self, images: np.ndarray) -> np.ndarray:
        """Images for display: uint8 `(samples, height, width, channels)`, RGB or grey.

        Where the range is not known, each image is scaled by itself from black to white.
        """
        if self.low is not None and self.high is not None:
            scaled = (images - self.low) / (self.high - self.low)
        else:
            flat = images.reshape(len(images), -1)
            low, high = (
                each.reshape(-1, *(1,) * len(self.shape)) for each in (flat.min(1), flat.max(1))
            )
            scaled = (images - low) / np.maximum(high - low, 1e-12)
        found: np.ndarray = np.round(255 * scaled).astype(np.uint8)
        found = found if self.axes == (1, 2) else np.moveaxis(found, 1, -1)
        return found[..., ::-1] if self.bgr else found


def image_space(inputs: Sequence[InputSpec], preprocess: Preprocess | None) -> ImageSpace:
    """The space of a model's only input.

    Raises:
        ModelError: the model has several inputs, or one that is no float array of known size.
    """
    listed = ", ".join(f"'{each.name}' {each}" for each in inputs)
    if len(inputs) != 1 or inputs[0].dtype != np.float32 or len(inputs[0].shape) < 2:
        raise ModelError(
            f"The model takes {listed}; --data-free generates samples for one float32 input: give "
            "samples with --data."
        )
    spec = inputs[0]
    shape = _sample_shape(spec, preprocess)
    channel_axis = 1 if preprocess is None or preprocess.layout == "nchw" else 3
    is_image = len(spec.shape) == 4 and shape[channel_axis - 1] in (1, 3)
    axes = ((2, 3) if channel_axis == 1 else (1, 2)) if is_image else None
    known = preprocess if is_image else None
    centre, spread, low, high = _range(known, shape[channel_axis - 1] if is_image else 1)
    bgr = known is not None and known.bgr
    batch = spec.shape[0]
    return ImageSpace(spec.name, shape, batch, centre, spread, low, high, axes, bgr)


def _sample_shape(spec: InputSpec, preprocess: Preprocess | None) -> tuple[int, ...]:
    """The shape of one sample; free height and width are those of the preprocessing."""
    shape = list(spec.shape[1:])
    if preprocess is not None and len(shape) == 3:
        sides: Sequence[int | None] = (None, None)
        if preprocess.crop is not None:
            sides = (preprocess.crop, preprocess.crop)
        elif isinstance(preprocess.resize, tuple):
            sides = preprocess.resize
        first = 1 if preprocess.layout == "nchw" else 0
        shape[first : first + 2] = [
            fixed or side for fixed, side in zip(shape[first : first + 2], sides, strict=True)
        ]
    if None in shape:
        raise ModelError(
            f"The model's input '{spec.name}' is {spec}, whose size is free; --data-free needs to "
            "know it: give --crop, or --resize H,W."
        )
    return tuple(size for size in shape if size is not None)


def _range(
    preprocess: Preprocess | None, channels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Mean, standard deviation, least and largest value of each channel."""
    if preprocess is None:
        return np.zeros(1, np.float32), np.ones(1, np.float32), None, None
    own = preprocess.for_channels(channels)
    step = -1 if own.bgr else 1
    mean, std = np.array(own.mean[::step]), np.array(own.std[::step])
    shape = (channels, 1, 1) if own.layout == "nchw" else (channels,)
    centre, low, high = (((x - mean) / std).astype(np.float32) for x in (CENTRE, 0.0, 1.0))
    spread = (SPREAD / std).astype(np.float32)
    found = [each.reshape(shape) for each in (centre, spread, low, high)]
    return found[0], found[1], found[2], found[3]


FEW_CLASSES = 0.5
"""Share of the classes that could occur below which variety has collapsed."""


@dataclass
class Synthesis:
    """How synthetic images were generated, and what they are.

    Attributes:
        method: 'distilled' or 'generator'.
        count: number of images.
        steps: of gradient descent, for each image.
        weights: of the losses, by kind.
        losses: unweighted losses before each step, means over all images, by kind.
        minutes: minutes that all images had taken when each of these steps began.
        tuning: losses and minutes of a generator that was trained on with the student.
        classes: number of images in each class of the float model; empty for other models.
        pictures: some of the images, uint8 `(pictures, height, width, channels)`.
        decisions: the class of each of them; empty where there are none.
        notes: sentences for the user.
        generator: the model that generated them, noise in and images out; None where there is none.
    """

    method: str
    count: int = 0
    steps: int = 0
    weights: dict[str, float] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    minutes: list[float] = field(default_factory=list)
    tuning: dict[str, list[float]] = field(default_factory=dict)
    classes: list[int] = field(default_factory=list)
    pictures: np.ndarray | None = None
    decisions: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    generator: ir.Model | None = None

    def to_fields(self) -> dict[str, Any]:
        """All but the pictures and the notes, as JSON fields."""
        return {
            "method": self.method,
            "count": self.count,
            "steps": self.steps,
            "weights": self.weights,
            "losses": self.losses,
            "minutes": self.minutes,
            "tuning": self.tuning,
            "classes": self.classes,
        }


def collapse_note(classes: Sequence[int]) -> str | None:
    """A note where the classes of synthetic images are few; None where they are not.

    exp(-sum_c f_c log f_c), the number of classes over which f would be spread evenly, is compared
    with the number of classes that could occur.
    """
    counts = np.asarray(classes, np.float64)
    possible = min(len(counts), int(counts.sum()))
    shares = counts[counts > 0] / max(counts.sum(), 1)
    effective = float(np.exp(-(shares * np.log(shares)).sum()))
    if possible < 2 or effective >= FEW_CLASSES * possible:
        return None
    largest = int(counts.argmax())
    return (
        f"the synthetic images are of {effective:.1f} classes in effect where {possible} could "
        f"occur ({100 * shares.max():.0f} % are of class {largest}): give --synthesis-loss "
        "inception a larger weight"
    )


CHECK_SAMPLES = 2
"""Samples on which every pass of normalisation is checked."""


def check_feeds(
    samples: Samples | None, inputs: Sequence[InputSpec], preprocess: Preprocess | None, seed: int
) -> Feeds:
    """What normalisation is checked on: samples, or noise where there are none.

    Args:
        samples: of the model as its file has it.
        inputs: what that takes.
        preprocess: how an image becomes its input.
        seed: of the noise.

    Raises:
        ModelError: as `image_space`.
    """
    if samples is not None:
        return next(samples.batches(CHECK_SAMPLES))
    space = image_space(inputs, preprocess)
    noise = space.noise(np.random.default_rng(seed), space.batch or CHECK_SAMPLES)
    return {space.name: noise}
