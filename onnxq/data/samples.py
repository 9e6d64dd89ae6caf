"""Samples: a fixed list of them, read as a stream of batches as often as needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from onnxq.data.arrays import Arrays
from onnxq.data.inputs import InputSpec, fixed_batch
from onnxq.data.preprocess import Preprocess
from onnxq.data.source import Source, spread
from onnxq.data.sources import open_source


class Samples:
    """A fixed sequence of samples; only their indices are held in memory.

    Args:
        source: what reads them.
        indices: which ones, in which order; None means all.
        batch: the only batch size to run them in; None leaves it to the source.
    """

    def __init__(
        self, source: Source, indices: np.ndarray | None = None, batch: int | None = None
    ) -> None:
        self._source, self._batch = source, batch
        self.indices = np.arange(len(source)) if indices is None else np.asarray(indices)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def skipped(self) -> list[str]:
        """Files that were left out because they are broken."""
        return self._source.skipped

    @property
    def notes(self) -> list[str]:
        """Sentences for the user on what was read."""
        return self._source.notes

    @property
    def batch(self) -> int | None:
        """The only batch size that the model takes; None where it is free."""
        return self._source.batch or self._batch

    def in_batches_of(self, size: int | None) -> Samples:
        """The same samples for a model that takes this batch alone; whole feeds stay whole.

        Args:
            size: samples in a batch; None changes nothing.
        """
        return Samples(self._source, self.indices, size or self._batch)

    def batches(self, size: int) -> Iterator[Arrays]:
        """Feeds by input name, always in the same order; the last one may be short.

        Where the model fixes its batch, that is the size whatever was asked, and samples
        that don't fill a last batch are left out.
        """
        indices: Sequence[int] = self.indices.tolist()
        if self.batch is not None:
            size = self.batch
            indices = indices[: len(indices) // size * size]
        return self._source.batches(indices, size)

    def subset(self, indices: Sequence[int] | np.ndarray) -> Samples:
        """The samples at these positions, in this order."""
        return Samples(self._source, self.indices[np.asarray(indices, np.int64)], self._batch)

    def take(self, n: int, seed: int = 0) -> Samples:
        """At most n samples, or a whole batch: one drawn from each of n equal stretches, in order.

        Files are sorted by name, often one class after another: a draw from each stretch
        takes as many from each.
        """
        n = max(n, self.batch or 1)
        return self if n >= len(self) else self.subset(spread(len(self), n, seed))

    def split(
        self, fraction: float = 0.2, least: int = 64, seed: int = 0, batch: int = 1
    ) -> tuple[Samples, Samples]:
        """Two disjoint random parts, each in the original order: to learn, and held back.

        Args:
            fraction: the share held back.
            least: the smallest number held back, as far as that leaves half to learn from.
            seed: of the choice.
            batch: the samples that a batch of the original has: no part is smaller.

        Returns:
            (train, held back); those that don't fill two batches are in both.
        """
        if len(self) < 2 * batch:
            return self, self
        count = max(round(fraction * len(self)), min(least, len(self) // 2), 1)
        order = np.random.default_rng(seed).permutation(len(self))
        count = min(-(-count // batch) * batch, len(self) - batch)
        return self.subset(np.sort(order[count:])), self.subset(np.sort(order[:count]))


def open_samples(
    path: Path,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None,
    limit: int | None = 512,
    seed: int = 0,
) -> Samples:
    """The samples in a folder or a file.

    Args:
        path: a folder of images, a folder of `.npy`, `.npz` or `.pb` files, or one `.npz`
            or `.npy`.
        inputs: what the model takes.
        preprocess: how an image becomes the model's input; arrays are fed as they are.
        limit: how many samples are used at most, or a whole batch; None means all.
        seed: of the choice among more than `limit`.

    Raises:
        DataError: there are no samples there, or they don't fit the model.
    """
    if limit is not None:
        limit = max(limit, fixed_batch(inputs) or 1)
    return Samples(open_source(Path(path), inputs, preprocess, limit, seed))
