"""Datasets: named arrays by index, streamed in batches; made anew or kept on disk.

A dataset returns the same arrays in the same order each time, and holds none of them in memory.
There are four:

- `Samples`, which the user gave or which were generated,
- `Stored` arrays, which a run keeps on disk,
- `Mapped`, a dataset and a function of its batches,
- `Joined`, several datasets with the same indices, side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir

from onnxq.errors import OutputError
from onnxq.runtime.session import Arrays, SessionPool

Read = Callable[[Iterable[np.ndarray]], Iterator[Arrays]]
"""From the places of the samples of each batch to their arrays; it may read a little ahead."""

Change = Callable[[Iterator[Arrays], Iterator[np.ndarray]], Iterator[Arrays]]
"""From batches, and the indices in each, to as many other batches in the same order."""


class Dataset(Protocol):
    """Named arrays by index.

    An index is one sample, whose arrays are stacked with those of others along the first axis.
    Where `batch` is set, an index is one whole feed of so many samples, which is never stacked.
    """

    @property
    def batch(self) -> int | None:
        """Samples in a whole feed; None where an index is a sample."""

    def __len__(self) -> int:
        """The number of indices."""

    def batches(self, size: int, indices: np.ndarray | None = None) -> Iterator[Arrays]:
        """The arrays by name of these indices, or of all, in this order.

        Args:
            size: indices in a batch, the last one may be short; one where it is a whole feed.
            indices: int64 `(n,)`; None means all.
        """


def chunks(dataset: Dataset, size: int, indices: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """The indices of each batch; arguments as of `Dataset.batches`."""
    if indices is None:
        indices = np.arange(len(dataset))
    step = size if dataset.batch is None else 1
    return (indices[start : start + step] for start in range(0, len(indices), step))


def first(dataset: Dataset) -> Arrays:
    """The arrays of the first index; nothing is read ahead."""
    return next(dataset.batches(1, np.arange(1)))


def spread(total: int, n: int, seed: int) -> np.ndarray:
    """Places in ascending order: a random one in each of n equal stretches of `total`."""
    edges = np.arange(n + 1) * total // n
    draws: np.ndarray = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
    return draws


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples in a fixed order; only their places are in memory.

    Attributes:
        read: reads samples by place.
        places: of each sample, int64.
        batch: the only batch size that the model takes; None where it is free. Where a sample is
            one whole feed, it is 1.
        skipped: files that were left out because they are broken.
        notes: sentences for the user on what was read.
    """

    read: Read
    places: np.ndarray
    batch: int | None = None
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """The number of samples, including those that fill no last batch."""
        return len(self.places)

    def __len__(self) -> int:
        """The number of indices: samples, or whole feeds where the model fixes its batch."""
        return self.count // (self.batch or 1)

    def batches(self, size: int, indices: np.ndarray | None = None) -> Iterator[Arrays]:
        """Feeds by input name; samples that don't fill a fixed batch are left out."""
        group = self.batch or 1
        places = self.places[: len(self) * group].reshape(len(self), group)
        return self.read(places[chosen].reshape(-1) for chosen in chunks(self, size, indices))

    def in_batches_of(self, size: int | None) -> Samples:
        """The same samples for a model with this fixed batch; whole feeds stay whole.

        Args:
            size: samples in a batch; None changes nothing.
        """
        return replace(self, batch=self.batch or size)

    def subset(self, chosen: Sequence[int] | np.ndarray) -> Samples:
        """Some of the samples, in this order."""
        return replace(self, places=self.places[np.asarray(chosen, np.int64)])

    def take(self, n: int, seed: int = 0) -> Samples:
        """At most n samples, at least one batch: a random one from each of n equal stretches.

        Files are sorted by name, often one class after another. One draw from each stretch takes as
        many of each class.
        """
        n = max(n, self.batch or 1)
        return self if n >= self.count else self.subset(spread(self.count, n, seed))

    def split(
        self, fraction: float = 0.2, least: int = 64, seed: int = 0, batch: int = 1
    ) -> tuple[Samples, Samples]:
        """Two disjoint random parts in the original order: training slice and held-out samples.

        Args:
            fraction: share of the held-out samples.
            least: least number of held-out samples, as far as half of all remain for training.
            seed: of the choice.
            batch: batch size of the original: no part is smaller.

        Returns:
            (train, held out); samples that don't fill two batches are in both.
        """
        if self.count < 2 * batch:
            return self, self
        count = max(round(fraction * self.count), min(least, self.count // 2), 1)
        order = np.random.default_rng(seed).permutation(self.count)
        count = min(-(-count // batch) * batch, self.count - batch)
        return self.subset(np.sort(order[count:])), self.subset(np.sort(order[:count]))


class Mapped:
    """A dataset and a function of its batches: nothing is computed before it is read.

    Args:
        dataset: the dataset, whose indices stay.
        change: the function.
    """

    def __init__(self, dataset: Dataset, change: Change) -> None:
        self._dataset, self._change = dataset, change

    @property
    def batch(self) -> int | None:
        """That of the dataset."""
        return self._dataset.batch

    def __len__(self) -> int:
        """That of the dataset."""
        return len(self._dataset)

    def batches(self, size: int, indices: np.ndarray | None = None) -> Iterator[Arrays]:
        """The function's results for the batches."""
        given = self._dataset.batches(size, indices)
        return self._change(given, chunks(self._dataset, size, indices))


def run_by(
    model: ir.Model,
    outputs: Sequence[str] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
) -> Change:
    """A function from batches to a model's outputs; arrays that the model doesn't take are ignored.

    Args:
        model: the float model or a student, one session of which is opened.
        outputs: names of the outputs wanted; None means all.
        constants: further inputs, the same for every batch.
    """
    pool, fixed = SessionPool(model, outputs, merge=False), fed_to(model, constants or {})
    return lambda batches, _: pool.map({**fixed, **fed_to(model, each)} for each in batches)


def fed_to(model: ir.Model, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Those of the arrays that are inputs of the model."""
    inputs = {value.name for value in model.graph.inputs}
    return {name: value for name, value in arrays.items() if name in inputs}


class Joined:
    """Datasets with the same indices, side by side: a batch has the arrays of all.

    Args:
        parts: the datasets; of arrays with the same name, the last one counts.
    """

    def __init__(self, *parts: Dataset) -> None:
        self.parts = parts

    @property
    def batch(self) -> int | None:
        """That of the first."""
        return self.parts[0].batch

    def __len__(self) -> int:
        """That of the first."""
        return len(self.parts[0])

    def batches(self, size: int, indices: np.ndarray | None = None) -> Iterator[Arrays]:
        """The batches of all parts, joined."""
        for found in zip(*(part.batches(size, indices) for part in self.parts), strict=True):
            yield {name: array for arrays in found for name, array in arrays.items()}


@dataclass(frozen=True)
class _Rows:
    """The rows of one array, one for each index, in a file.

    It is read and written, not mapped: mapped pages count as memory of this process.
    """

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]

    def append(self, rows: np.ndarray) -> None:
        """Write the rows of the next indices."""
        with self.path.open("ab") as file:
            file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)

    def at(self, indices: np.ndarray) -> np.ndarray:
        """The rows of these indices; neighbours are read at once."""
        size = self.dtype.itemsize * int(np.prod(self.shape))
        found = np.empty((len(indices), size), np.uint8)
        starts = np.flatnonzero(np.diff(indices, prepend=-2) != 1)
        with self.path.open("rb") as file:
            for start, end in pairwise([*starts.tolist(), len(indices)]):
                file.seek(int(indices[start]) * size)
                file.readinto(found[start:end].data)
        return found.view(self.dtype).reshape(len(indices), *self.shape)


class Stored:
    """Named arrays by index, in files under a folder; memory does not grow with them.

    Args:
        folder: an existing, empty folder for the files.
        batch: as of any dataset; whole feeds may be of any shape.
        what: the content, for error messages.
    """

    def __init__(self, folder: Path, batch: int | None, what: str) -> None:
        self._folder, self._what = folder, what
        self._names: list[str] = []
        self._rows: dict[str, _Rows] = {}
        self._stored = 0
        self.batch = batch

    def __len__(self) -> int:
        """The number of indices stored so far."""
        return self._stored

    def batches(self, size: int, indices: np.ndarray | None = None) -> Iterator[Arrays]:
        """The arrays of these indices, in their original shape."""
        return self.read(chunks(self, size, indices))

    def read(self, places: Iterable[np.ndarray]) -> Iterator[Arrays]:
        """The arrays at the indices of each batch."""
        return (self.at(indices) for indices in places)

    def append(self, arrays: Mapping[str, np.ndarray], count: int) -> None:
        """Store the arrays of the next indices.

        Args:
            arrays: by name, the same names each time; where indices are samples, the first axis has
                as many rows for each of them.
            count: the number of indices.

        Raises:
            OutputError: the disk is full.
        """
        self._names = self._names or list(arrays)
        for name, array in arrays.items():
            try:
                self._append(name, array, count)
            except OSError as error:
                raise no_room(self._folder, self._what, array.nbytes, error) from error
        self._stored += count

    def extend(self, dataset: Dataset, size: int, at: Callable[[int], None] | None = None) -> None:
        """Store all indices of a dataset, `size` at a time.

        Args:
            dataset: the dataset, each index of which is read once.
            size: indices in a batch.
            at: called with the number of indices stored.

        Raises:
            OutputError: the disk is full.
        """
        for chosen, arrays in zip(chunks(dataset, size), dataset.batches(size), strict=True):
            self.append(arrays, len(chosen))
            if at is not None:
                at(self._stored)

    def at(self, indices: np.ndarray) -> Arrays:
        """The arrays of one batch."""
        if self.batch is not None:
            (index,) = indices
            return {name: np.load(self._path(name, int(index))) for name in self._names}
        found = {name: self._rows[name].at(indices) for name in self._names}
        return {
            n: rows.reshape(math.prod(rows.shape[:2]), *rows.shape[2:]) for n, rows in found.items()
        }

    def remove(self) -> None:
        """Delete the files; the arrays can't be read any more."""
        self._rows.clear()
        for path in self._folder.iterdir():
            path.unlink()

    def _append(self, name: str, array: np.ndarray, count: int) -> None:
        if self.batch is not None:
            np.save(self._path(name), array)
            return
        # A tensor before a reshape may hold several rows of each sample.
        rows = array.reshape(count, len(array) // count, *array.shape[1:])
        if name not in self._rows:
            path = self._folder / f"{self._names.index(name)}.rows"
            self._rows[name] = _Rows(path, rows.dtype, rows.shape[1:])
        assert rows.shape[1:] == self._rows[name].shape
        self._rows[name].append(rows)

    def _path(self, name: str, index: int | None = None) -> Path:
        number = self._stored if index is None else index
        return self._folder / f"{self._names.index(name)}.{number}.npy"


def no_room(folder: Path, what: str, size: int, error: OSError) -> OutputError:
    """The error for a folder of temporary files that can't be written to."""
    reason = error.strerror or str(error)
    return OutputError(
        f"the temporary folder '{folder}' has no room for {what} "
        f"({size} bytes: {reason}); free some space or set TMPDIR to another folder"
    )
