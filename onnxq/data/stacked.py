"""Whole feeds, one after the other in arrays that have one axis more than the model's inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxq.data.arrays import Arrays, check_finite
from onnxq.data.inputs import InputSpec
from onnxq.data.source import spread


class StackedFeeds:
    """Feeds along the first axis of arrays; what has no such axis is part of each feed.

    Args:
        stacked: arrays by input name, the feed's number first.
        shared: arrays that every feed has.
    """

    def __init__(self, stacked: Arrays, shared: Arrays) -> None:
        self.skipped: list[str] = []
        self.notes: list[str] = []
        self.batch: int | None = 1
        self._stacked, self._shared = stacked, shared

    def __len__(self) -> int:
        return len(next(iter(self._stacked.values())))

    def batches(self, indices: Sequence[int], size: int) -> Iterator[Arrays]:
        """One feed for each index."""
        del size
        for index in indices:
            yield {name: np.asarray(each[index]) for name, each in self._stacked.items()} | dict(
                self._shared
            )


def open_stack(
    arrays: Mapping[str, np.ndarray],
    inputs: Sequence[InputSpec],
    path: Path,
    limit: int | None,
    seed: int,
) -> StackedFeeds | None:
    """Feeds out of arrays of which at least one has one axis more than its input; else None.

    Beside it, an input of one row may have its rows stacked: (64, 8) are 64 feeds of (1, 8).

    Raises:
        DataError: an array holds NaN or infinity.
    """
    counts = {
        len(arrays[spec.name])
        for spec in inputs
        if arrays[spec.name].ndim and _is_one_feed(spec) and spec.fits(arrays[spec.name].shape[1:])
    }
    count = counts.pop() if len(counts) == 1 else 0
    if not count:
        return None
    stacked: Arrays = {}
    shared: Arrays = {}
    for spec in inputs:
        array = arrays[spec.name]
        feeds = _feeds(array, spec)
        if feeds is not None and len(feeds) == count:
            stacked[spec.name] = feeds
        elif spec.fits(array.shape):
            shared[spec.name] = np.asarray(array)
        else:
            return None
        check_finite(array, spec, path)
    if limit is not None and count > limit:
        chosen = spread(count, limit, seed)
        stacked = {name: each[chosen] for name, each in stacked.items()}
    return StackedFeeds(stacked, shared)


def _is_one_feed(spec: InputSpec) -> bool:
    """Whether the input has no batch, whose samples an array of its own rank would hold."""
    return not spec.shape or spec.shape[0] is not None


def _feeds(array: np.ndarray, spec: InputSpec) -> np.ndarray | None:
    """The array with the feed's number first; None where it has none."""
    if array.ndim and spec.fits(array.shape[1:]):
        return array
    rows = array[:, None] if array.ndim else array
    return rows if array.ndim and spec.fits(rows.shape[1:]) else None
