"""Fresh images in every epoch, from a generator that is trained against the student.

A part of each epoch's samples is fresh, another part each time. The rest are the first images, so
that nothing learned on them is forgotten. Fresh images of one epoch are on disk until the next
begins: neither memory nor disk grows with epochs.
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
from onnxq.train.augment import Changes
from onnxq.train.teacher import Teacher

SHARE = 0.5
"""Of an epoch's samples that are fresh."""


class ImageSource(Protocol):
    """Generates images, and is trained to generate others.

    Attributes:
        name: of the model's input that takes them.
    """

    name: str

    def learn(self, numbers: Feeds, count: int, late: Callable[[], bool]) -> None:
        """Train on `count` images against a student with these parameters, unless time runs out."""

    def draw(self, count: int) -> Iterator[np.ndarray]:
        """So many images in batches; the same ones until `learn` is called again."""

    def text(self) -> str:
        """Details for progress."""

    def state(self) -> Arrays:
        """The state that later images depend on."""

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore a saved state."""


class FreshImages(Changes):
    """Replaces some samples of each epoch by fresh images.

    Args:
        samples: the first images.
        teacher: computes the targets of the fresh ones.
        source: generates the fresh ones.
        student: the student that the source is trained against.
        folder: an existing folder for one epoch's images.
        seed: of the choice of replaced samples.
        further: how all samples change after that; None leaves them unchanged.
        share: share of replaced samples, 0 to 1; at least one is replaced.
    """

    def __init__(
        self,
        samples: Dataset,
        teacher: Teacher,
        source: ImageSource,
        student: Student,
        folder: Path,
        seed: int,
        further: Changes | None = None,
        share: float = SHARE,
    ) -> None:
        self._teacher, self._source, self._student = teacher, source, student
        self._folder, self._seed, self._further = folder, seed, further
        self._count, self._group = len(samples), samples.batch or 1
        self._replaced = max(1, round(share * self._count))
        self._images: Stored | None = None

    def begin(self, qparams: QParams, late: Callable[[], bool]) -> None:
        """Train the source against these quantization parameters."""
        numbers = self._student.feeds(qparams)
        self._source.learn(numbers, self._replaced * self._group, late)

    def changed(
        self, batches: Iterator[Arrays], indices: Iterator[np.ndarray], epoch: int
    ) -> Iterator[Arrays]:
        """The batches with fresh images in this epoch's places; arguments as of `Changes`."""
        indices, again = tee(indices)
        mixed = self._mixed(batches, indices, epoch)
        if self._further is not None:
            return self._further.changed(mixed, again, epoch)
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
        """The source's images of this epoch, on disk."""
        if self._images is not None:
            self._images.remove()
        count = self._replaced * self._group
        self._images = Stored(self._folder, count, None, "the generator's images")
        for images in self._source.draw(count):
            self._images.append({self._source.name: images}, len(images))
        return self._images
