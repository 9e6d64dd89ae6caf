"""Fresh images in every epoch, from a source that learns what the student does not know yet.

A part of each epoch's samples is fresh, another part each time; the rest are those that were made
first, so that nothing learned on them is forgotten. Fresh images of one epoch lie on disk until
the next begins: neither memory nor disk grows with epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from onnxq.runtime.rows import Rows
from onnxq.runtime.session import Arrays, Feeds
from onnxq.student.qparams import QParams
from onnxq.student.student import Student
from onnxq.train.augment import Changes
from onnxq.train.teacher import TeacherOutputs

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
        outputs: the teacher's outputs on the samples that were made first.
        source: makes the others.
        student: whose numbers it learns against.
        folder: an existing folder for one epoch's images.
        seed: of which samples are replaced.
        further: what becomes of all samples then; None leaves them.
        share: of the samples that are replaced, 0 to 1; one sample at least.
    """

    def __init__(
        self,
        outputs: TeacherOutputs,
        source: ImageSource,
        student: Student,
        folder: Path,
        seed: int,
        further: Changes | None = None,
        share: float = SHARE,
    ) -> None:
        self._outputs, self._source, self._student = outputs, source, student
        self._folder, self._seed, self._further = folder, seed, further
        self._replaced = max(1, round(share * outputs.positions))
        self._group = outputs.batch or 1
        self._rows: Rows | None = None

    def begin(self, qparams: QParams, late: Callable[[], bool]) -> None:
        """The source learns against these numbers."""
        numbers = self._student.feeds(qparams)
        self._source.learn(numbers, self._replaced * self._group, late)

    def changed(
        self, batches: Iterator[Arrays], positions: np.ndarray, epoch: int
    ) -> Iterator[Arrays]:
        """The feeds with fresh images at the epoch's positions; arguments as of `Changes`."""
        mixed = self._mixed(batches, positions, epoch)
        if self._further is not None:
            return self._further.changed(mixed, positions, epoch)
        return self._outputs.retargeted(mixed)

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
        self, batches: Iterator[Arrays], positions: np.ndarray, epoch: int
    ) -> Iterator[Arrays]:
        name, group, rows = self._source.name, self._group, self._drawn()
        rng = np.random.default_rng((self._seed, epoch))
        chosen = rng.permutation(self._outputs.positions)[: self._replaced]
        places, left = {int(p): i for i, p in enumerate(chosen)}, iter(positions)
        for feeds in batches:
            images = feeds[name].copy()
            for start in range(0, len(images), group):
                place = places.get(int(next(left)))
                if place is not None:
                    own = np.arange(place * group, (place + 1) * group)
                    images[start : start + group] = rows.at(own)[name]
            yield {**feeds, name: images}

    def _drawn(self) -> Rows:
        """The source's images of this epoch, on disk."""
        if self._rows is not None:
            self._rows.remove()
        count = self._replaced * self._group
        self._rows = Rows(self._folder, count, False, "the generator's images")
        for images in self._source.draw(count):
            self._rows.append({self._source.name: images}, len(images))
        return self._rows
