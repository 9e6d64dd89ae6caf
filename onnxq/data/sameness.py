"""Samples that say nothing: all of them the same, or each of them one value throughout."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxq.data.arrays import Arrays
from onnxq.data.samples import Samples

MOST = 64
"""Samples looked at, at most: nearly always the second one differs from the first."""


def notes_on_sameness(samples: Samples) -> list[str]:
    """Sentences for the user where samples can't tell ranges; nothing where two differ."""
    first: Arrays | None = None
    count, alike, flat = 0, True, True
    for sample in _one_by_one(samples.take(MOST)):
        first = first or sample
        count += 1
        alike = alike and _equal(first, sample)
        flat = flat and all(_is_flat(array) for array in sample.values())
        if not alike and not flat:
            return []
    if alike and count > 1:
        return [f"the first {count} samples are all the same; check what --data names"]
    if flat and count:
        return ["each sample is one value throughout, as a black image is; check what --data names"]
    return []


def _one_by_one(samples: Samples) -> Iterator[Arrays]:
    """The samples, where the model takes several at once too."""
    for feeds in samples.batches(1):
        sizes = {len(array) if array.ndim else 0 for array in feeds.values()}
        if samples.batch is None or len(sizes) > 1 or sizes <= {0, 1}:
            yield feeds
            continue
        for i in range(sizes.pop()):
            yield {name: array[i : i + 1] for name, array in feeds.items()}


def _equal(one: Arrays, other: Arrays) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def _is_flat(array: np.ndarray) -> bool:
    """Whether floats are all the same, of images in each channel, whichever axis that is."""
    if array.dtype.kind != "f" or array.size < 2:
        return False
    if array.ndim != 4:
        return bool(np.all(array == array.flat[0]))
    return bool(np.all(array == array[:, :, :1, :1]) or np.all(array == array[:, :1, :1, :]))
