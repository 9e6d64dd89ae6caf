"""Channels of one tensor that mean different things: boxes in pixels beside scores from 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

MOST_CHANNELS = 1024
"""Longest axis that is taken for channels."""

FARTHER = 4.0
"""How many times the largest absolute value of one group the mean absolute values of another
must be for the two to mean different things. Channels of one meaning, a class that is never seen
beside one that often is, overlap."""


@dataclass(frozen=True)
class ChannelGroups:
    """The channels of a tensor in two groups that mean different things.

    Attributes:
        axis: the channel axis.
        rank: of the tensor.
        larger: whether each channel is of the group of larger values, bool (channels,).
    """

    axis: int
    rank: int
    larger: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an array by channel that is broadcast to the tensor."""
        return tuple(len(self.larger) if i == self.axis else 1 for i in range(self.rank))

    def sums(self, per_channel: np.ndarray) -> tuple[float, float]:
        """The sums of an array (channels,) over the larger and over the smaller values' group."""
        return float(per_channel[self.larger].sum()), float(per_channel[~self.larger].sum())


@dataclass
class _Axis:
    """Running sums of the slices along one axis, float64 (channels,)."""

    absolute: np.ndarray
    largest: np.ndarray
    squares: np.ndarray
    errors: np.ndarray

    @classmethod
    def of(cls, channels: int) -> _Axis:
        return cls(*(np.zeros(channels) for _ in range(4)))


@dataclass
class ChannelSums:
    """Running sums by channel of a tensor and of its errors, along every axis but the first.

    Only tensors of three or more dimensions have channels here: a matrix holds one row of classes
    or features for each sample.
    """

    _axes: dict[int, _Axis] | None = None
    _elements: int = 0
    _rank: int = field(default=0)

    def add(self, y: np.ndarray, error: np.ndarray | None = None) -> None:
        """Add a batch, and its errors where there are any; sizes that vary are no channels."""
        if self._axes is None:
            sizes = enumerate(y.shape) if y.ndim > 2 else ()
            self._axes = {i: _Axis.of(n) for i, n in sizes if i and 1 < n <= MOST_CHANNELS}
            self._rank = y.ndim
        same = y.ndim == self._rank
        self._axes = {
            i: each for i, each in self._axes.items() if same and len(each.squares) == y.shape[i]
        }
        self._elements += y.size
        for axis, sums in self._axes.items():
            others = tuple(i for i in range(y.ndim) if i != axis)
            absolute = np.abs(y)
            sums.absolute += absolute.sum(others, dtype=np.float64)
            np.maximum(sums.largest, absolute.max(others, initial=0), out=sums.largest)
            sums.squares += np.square(y, dtype=np.float64).sum(others)
            if error is not None:
                sums.errors += np.square(error, dtype=np.float64).sum(others)

    def groups(self) -> ChannelGroups | None:
        """The groups along the axis on which they are farthest apart; None for one meaning."""
        best, found = FARTHER, None
        for axis, sums in (self._axes or {}).items():
            mean = sums.absolute * len(sums.absolute) / max(self._elements, 1)
            order = np.argsort(mean, kind="stable")
            reached = np.maximum.accumulate(sums.largest[order])[:-1]
            ratio = mean[order][1:] / np.maximum(reached, np.finfo(np.float32).tiny)
            ratio[reached == 0] = 0.0  # channels of zeros mean nothing of their own
            at = int(ratio.argmax())
            if ratio[at] >= best:
                best, larger = float(ratio[at]), np.zeros(len(mean), bool)
                larger[order[at + 1 :]] = True
                found = ChannelGroups(axis, self._rank, larger)
        return found

    def squares(self, axis: int) -> np.ndarray:
        """The sum of squares of each channel, float64 (channels,)."""
        return (self._axes or {})[axis].squares

    def errors(self, axis: int) -> np.ndarray:
        """The sum of squared errors of each channel, float64 (channels,)."""
        return (self._axes or {})[axis].errors
