"""New synthetic images in every epoch, from a generator that is trained against the student.

In each epoch a share of the samples, chosen at random, is replaced by new images. The others stay
as they were generated first, so that nothing learned on them is forgotten. The new images are on
disk for one epoch: neither memory nor disk use grows with the number of epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import tee
from pathlib import Path
from typing import Protocol

import numpy as np

from onnxq.runtime.dataset import Dataset
from onnxq.runtime.session import Arrays, Feeds
from onnxq.runtime.stored import Stored
from onnxq.student.qparams import QParams
from onnxq.student.student import Student
from onnxq.train.augment import Transform
from onnxq.train.teacher import Teacher

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
        self._images = Stored(self._folder, count, None, "the generator's images")
        for images in self._source.draw(count):
            self._images.append({self._source.name: images}, len(images))
        return self._images
