"""Tensors of every sample, kept on disk by position."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxq.errors import OutputError
from onnxq.runtime.session import Arrays


class Rows:
    """Named tensors by position, in files under a folder; memory does not grow with them.

    A position is a sample, whose rows are stacked along the first axis, or one whole feed.

    Args:
        folder: an existing folder for the files.
        count: number of positions.
        whole: whether a position is one whole feed, of any shape.
        what: what the tensors are, for an error.
    """

    def __init__(self, folder: Path, count: int, whole: bool, what: str) -> None:
        self._folder, self._count, self._whole, self._what = folder, count, whole, what
        self._names: list[str] = []
        self._rows: dict[str, np.memmap] = {}
        self.stored = 0

    def append(self, arrays: Mapping[str, np.ndarray], count: int) -> None:
        """Store the tensors of the next positions.

        Args:
            arrays: by name, the same ones each time; where positions are samples, the first
                axis holds as many rows for each of them.
            count: how many positions they are.

        Raises:
            OutputError: there is no room in the folder.
        """
        self._names = self._names or list(arrays)
        for name, array in arrays.items():
            if self._whole:
                self._save(self._path(name), array)
            else:
                # A tensor before a reshape may hold several rows of each sample.
                rows = array.reshape(count, len(array) // count, *array.shape[1:])
                self._memmap(name, rows)[self.stored : self.stored + count] = rows
        self.stored += count

    def at(self, positions: np.ndarray) -> Arrays:
        """The tensors at these positions, in the shape that the model gave them."""
        if self._whole:
            (position,) = positions
            return {name: np.load(self._path(name, int(position))) for name in self._names}
        found = {name: np.asarray(self._rows[name][positions]) for name in self._names}
        return {name: rows.reshape(-1, *rows.shape[2:]) for name, rows in found.items()}

    def remove(self) -> None:
        """Delete the files; the tensors can't be read any more."""
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

    def _path(self, name: str, position: int | None = None) -> Path:
        number = self.stored if position is None else position
        return self._folder / f"{self._names.index(name)}.{number}.npy"

    def _reserve(self, path: Path, size: int) -> None:
        """Take the disk space of a file at once: a mapped file would end the process later."""
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
