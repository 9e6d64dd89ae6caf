"""A histogram of streamed values of any size, in a fixed amount of memory.

Bin i counts the values in [i·w, (i+1)·w), −B ≤ i < B, where B = ``BINS_PER_SIDE`` and the width w
is a power of two. When a value falls outside, w doubles and bins merge in pairs. Since x/w is exact
in float and floor(floor(x/w)/2) = floor(x/2w), the counts depend only on which values were added,
never on their order or on how they were split into batches.

Zeros are counted apart. Every quantizer represents zero exactly, so a spike of zeros behind a Relu
has no quantization error and says nothing about the distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BINS_PER_SIDE = 2048
"""Bins on each side of zero; the side that holds the largest value fills over half of them."""

_SMALLEST_EXPONENT = -1000
"""Of the width of an empty histogram; anything but zero makes it grow."""


def _empty_counts() -> NDArray[np.int64]:
    return np.zeros(2 * BINS_PER_SIDE, np.int64)


@dataclass
class Histogram:
    """Counts of the values so far.

    Attributes:
        counts: values other than zero by bin, lowest bin first, ``(2 * BINS_PER_SIDE,)`` int64.
        zeros: the number of values that were exactly zero.
        exponent: log2 of the width of a bin.
    """

    counts: NDArray[np.int64] = field(default_factory=_empty_counts)
    zeros: int = 0
    exponent: int = _SMALLEST_EXPONENT

    @property
    def width(self) -> float:
        """The width of a bin, a power of two, in real units."""
        return 2.0**self.exponent

    @property
    def total(self) -> int:
        """The number of values, zeros included."""
        return int(self.counts.sum()) + self.zeros

    @property
    def edges(self) -> NDArray[np.float64]:
        """The edges of the bins, ``(2 * BINS_PER_SIDE + 1,)`` float64; the middle one is zero."""
        return np.arange(-BINS_PER_SIDE, BINS_PER_SIDE + 1, dtype=np.float64) * self.width

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middles of the bins, ``(2 * BINS_PER_SIDE,)`` float64."""
        return (np.arange(-BINS_PER_SIDE, BINS_PER_SIDE, dtype=np.float64) + 0.5) * self.width

    @property
    def mean(self) -> float:
        """The mean of all values, zeros included, to within half the width of a bin."""
        return float(self.counts @ self.centres) / self.total if self.total else 0.0

    def add(self, values: NDArray[np.floating]) -> None:
        """Counts more values.

        Args:
            values: real values of any shape and float dtype, none of them NaN or infinite.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        flat = values.reshape(-1)
        if flat.size == 0:
            return
        largest = float(max(flat.max(), -flat.min()))
        if not math.isfinite(largest):
            raise ValueError(f"a histogram holds finite values only, found '{largest}'")
        if largest == 0.0:
            self.zeros += flat.size
            return
        self._cover(_exponent_for(largest))
        zeros = flat.size - int(np.count_nonzero(flat))
        index = np.floor(_scaled_by_power_of_two(flat, -self.exponent)).astype(np.intp)
        index += BINS_PER_SIDE
        self.counts += np.bincount(index, minlength=self.counts.size)
        # Zeros fell into the first bin right of zero.
        self.counts[BINS_PER_SIDE] -= zeros
        self.zeros += zeros

    def _cover(self, exponent: int) -> None:
        """Merges bins until their width is at least 2**exponent."""
        while self.exponent < exponent:
            if not self.counts.any():
                self.exponent = exponent
                return
            half = BINS_PER_SIDE // 2
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = _empty_counts()
            self.counts[half : half + BINS_PER_SIDE] = merged
            self.exponent += 1


def _exponent_for(largest: float) -> int:
    """The smallest e with largest < BINS_PER_SIDE · 2**e."""
    return math.frexp(largest)[1] - (BINS_PER_SIDE.bit_length() - 1)


def _scaled_by_power_of_two(
    values: NDArray[np.floating], exponent: int
) -> NDArray[np.float32] | NDArray[np.float64]:
    """Values · 2**exponent, exact, in float32 where the factor is a normal float32."""
    if values.dtype == np.float32 and abs(exponent) < 126:
        return np.asarray(values * np.float32(2.0**exponent), dtype=np.float32)
    return np.asarray(np.ldexp(values.astype(np.float64), exponent), dtype=np.float64)
