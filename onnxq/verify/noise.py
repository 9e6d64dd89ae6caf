"""Signal and noise of a tensor, summed up batch by batch."""

from __future__ import annotations

import math

import numpy as np

MOST_DB = 200.0
"""Bound of the SQNR: equal tensors would have an infinite one, which JSON can't hold."""


class Noise:
    """Running sums of y^2 and (y - y')^2 in float64; elements where y is not finite don't count.

    Attributes:
        signal: sum of y^2.
        noise: sum of (y - y')^2.
    """

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, y: np.ndarray, y_hat: np.ndarray) -> None:
        """Take two tensors of one shape into account."""
        valid = np.isfinite(y)
        if not valid.all():
            y, y_hat = y[valid], y_hat[valid]
        self.signal += float(np.square(y, dtype=np.float64).sum())
        self.noise += float(np.square(np.subtract(y, y_hat, dtype=np.float64)).sum())

    def sqnr_db(self) -> float:
        """10 log10(signal / noise) in decibels, within +-200."""
        if not math.isfinite(self.noise):
            return -MOST_DB
        if self.noise == 0:
            return MOST_DB
        ratio = 10 * math.log10(max(self.signal / self.noise, 1e-20))
        return min(max(ratio, -MOST_DB), MOST_DB)
