"""What calibration knows about one tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxq.numerics.histogram import Histogram

Channels = NDArray[np.float32]


@dataclass
class TensorStatistics:
    """The range and the distribution of one tensor over all samples.

    Attributes:
        minimum: the smallest value, exact, in real units.
        maximum: the largest value, exact.
        histogram: the distribution, of a sample of the elements.
        channel_minimum: the smallest value of each channel (axis 1), ``(channels,)`` float32,
            exact; None where it was not asked for.
        channel_maximum: the largest value of each channel, likewise.
        channel_mean: the mean of each channel over all elements, ``(channels,)`` float64.
        channel_elements: how many elements are behind `channel_mean`.
        finite: False where a NaN or an infinity was seen (a mask of −∞, for one): such a
            tensor has no range and stays float.
    """

    minimum: float = np.inf
    maximum: float = -np.inf
    histogram: Histogram = field(default_factory=Histogram)
    channel_minimum: Channels | None = None
    channel_maximum: Channels | None = None
    channel_mean: NDArray[np.float64] | None = None
    channel_elements: int = 0
    finite: bool = True

    @property
    def mean(self) -> float:
        """The mean of the sampled elements."""
        return self.histogram.mean

    def update(self, minimum: float, maximum: float, values: NDArray[np.floating]) -> None:
        """Takes in one batch: its exact limits and a sample of its elements.

        Of the sample only the finite values enter the histogram; see `finite`.
        """
        # np.minimum, unlike min, keeps a NaN.
        self.minimum = float(np.minimum(self.minimum, minimum))
        self.maximum = float(np.maximum(self.maximum, maximum))
        if math.isfinite(minimum) and math.isfinite(maximum) and np.isfinite(values).all():
            self.histogram.add(values)
        else:
            self.finite = False
            self.histogram.add(values[np.isfinite(values)])

    def update_channels(
        self, minimum: Channels, maximum: Channels, mean: Channels, elements: int
    ) -> None:
        """Takes in the limits and the mean of each channel over one batch.

        Args:
            minimum: ``(channels,)``.
            maximum: ``(channels,)``.
            mean: ``(channels,)``.
            elements: a weight in proportion to the elements behind each mean.
        """
        if self.channel_minimum is None or self.channel_maximum is None:
            self.channel_minimum, self.channel_maximum = minimum.copy(), maximum.copy()
        else:
            np.minimum(self.channel_minimum, minimum, out=self.channel_minimum)
            np.maximum(self.channel_maximum, maximum, out=self.channel_maximum)
        self.channel_elements += elements
        previous = np.zeros(mean.shape) if self.channel_mean is None else self.channel_mean
        # Infinite values have no mean: the result is NaN, which readers must expect.
        with np.errstate(invalid="ignore"):
            self.channel_mean = previous + (mean - previous) * (elements / self.channel_elements)
