"""Arrays that repeat along an axis, by what is repeated."""

from __future__ import annotations

import numpy as np


def collapsed(array: np.ndarray) -> np.ndarray:
    """The array with one element along each axis that all of its slices are equal along.

    Spread over the shape of `array` it gives `array` again, bit by bit; a view of it.
    """
    found = array
    for axis in range(array.ndim):
        first = found.take([0], axis) if found.shape[axis] else found
        if found.shape[axis] > 1 and _same(found, first):
            found = first
    return found


def _same(array: np.ndarray, first: np.ndarray) -> bool:
    """Whether the array is `first`, spread; NaN counts as equal, -0 and 0 do not."""
    if array.dtype.kind == "f":
        bits = np.dtype(f"u{array.itemsize}")
        return bool((np.ascontiguousarray(array).view(bits) == first.view(bits)).all())
    return bool((array == first).all())
