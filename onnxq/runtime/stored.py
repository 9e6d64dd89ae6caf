"""A dataset on disk: the arrays of every index, kept as long as a run needs them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from onnxq.errors import OutputError
from onnxq.runtime.dataset import Dataset, chunks
from onnxq.runtime.session import Arrays


class Stored:
    """Named arrays by index, in files under a folder; memory does not grow with them.

    Args:
        folder: an existing folder for the files.
        count: most indices.
        batch: as of any dataset; whole feeds may be of any shape.
        what: the content, for error messages.
    """

    def __init__(self, folder: Path, count: int, batch: int | None, what: str) -> None:
        self._folder, self._count, self._what = folder, count, what
        self._names: list[str] = []
        self._rows: dict[str, np.memmap] = {}
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
            if self.batch is not None:
                self._save(self._path(name), array)
            else:
                # A tensor before a reshape may hold several rows of each sample.
                rows = array.reshape(count, len(array) // count, *array.shape[1:])
                self._memmap(name, rows)[self._stored : self._stored + count] = rows
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
        found = {name: np.asarray(self._rows[name][indices]) for name in self._names}
        return {name: rows.reshape(-1, *rows.shape[2:]) for name, rows in found.items()}

    def remove(self) -> None:
        """Delete the files; the arrays can't be read any more."""
        self._rows.clear()
        for path in self._folder.iterdir():
            path.unlink()

    def _memmap(self, name: str, rows: np.ndarray) -> np.memmap:
        if name not in self._rows:
            shape = (self._count, *rows.shape[1:])
            path = self._folder / f"{self._names.index(name)}.rows"
            self._reserve(path, rows.itemsize * int(np.prod(shape)))
            self._rows[name] = np.memmap(path, rows.dtype, "r+", shape=shape)
        return self._rows[name]

    def _path(self, name: str, index: int | None = None) -> Path:
        number = self._stored if index is None else index
        return self._folder / f"{self._names.index(name)}.{number}.npy"

    def _reserve(self, path: Path, size: int) -> None:
        """Take a file's disk space at once: on a full disk a mapped file would crash later."""
        try:
            with path.open("wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, max(size, 1))
                file.truncate(size)
        except OSError as error:
            raise self._no_room(size, error) from error

    def _save(self, path: Path, array: np.ndarray) -> None:
        try:
            np.save(path, array)
        except OSError as error:
            raise self._no_room(array.nbytes, error) from error

    def _no_room(self, size: int, error: OSError) -> OutputError:
        reason = error.strerror or str(error)
        return OutputError(
            f"the temporary folder '{self._folder}' has no room for {self._what} "
            f"({size} bytes: {reason}); free some space or set TMPDIR to another folder"
        )
