"""Fresh images in every epoch, from a source that learns what the student does not know yet.

A part of each epoch's samples is fresh, another part each time; the rest are those that were made
first, so that nothing learned on them is forgotten. Fresh images of one epoch lie on disk until
the next begins: neither memory nor disk grows with epochs.
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
    """Makes images, and learns to make others.

    Attributes:
        name: of the model's input that takes them.
    """

    name: str

    def learn(self, numbers: Feeds, count: int, late: Callable[[], bool]) -> None:
        """Learn against a student with these numbers, on `count` images, unless it gets late."""

    def draw(self, count: int) -> Iterator[np.ndarray]:
        """So many images in batches: the same ones until it learns again."""

    def text(self) -> str:
        """How it goes, for progress."""

    def state(self) -> Arrays:
        """All that later images depend on."""

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a saved state."""


class FreshImages(Changes):
    """Puts fresh images in the place of some samples of each epoch.

    Args:
        samples: those that were made first.
        teacher: says what is to be matched on the others.
        source: makes the others.
        student: whose numbers it learns against.
        folder: an existing folder for one epoch's images.
        seed: of which samples are replaced.
        further: what becomes of all samples then; None leaves them.
        share: of the samples that are replaced, 0 to 1; one sample at least.
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
        """The source learns against these numbers."""
        numbers = self._student.feeds(qparams)
        self._source.learn(numbers, self._replaced * self._group, late)

    def changed(
        self, batches: Iterator[Arrays], indices: Iterator[np.ndarray], epoch: int
    ) -> Iterator[Arrays]:
        """The batches with fresh images in the epoch's places; arguments as of `Changes`."""
        indices, again = tee(indices)
        mixed = self._mixed(batches, indices, epoch)
        if self._further is not None:
            return self._further.changed(mixed, again, epoch)
        return self._teacher.with_targets(mixed)

    def text(self) -> str:
        """How the source goes."""
        return self._source.text()

    def state(self) -> Arrays:
        """That of the source."""
        return self._source.state()

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a saved state."""
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
