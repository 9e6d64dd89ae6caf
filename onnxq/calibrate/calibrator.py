"""The calibrator: runs a model on samples and collects statistics of its tensors."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.calibrate.observers import Observer, observe
from onnxq.numerics.histogram import Histogram
from onnxq.runtime.dataset import Dataset
from onnxq.runtime.session import Arrays, Feeds, SessionPool

Channels = NDArray[np.float32]

MOST_DRAWN = 2**17
"""Most elements of one tensor that are kept together with their channels."""


class Drawn:
    """A bounded sample of a tensor's elements, each with its channel."""

    def __init__(self) -> None:
        self._values: list[NDArray[np.float32]] = []
        self._channels: list[NDArray[np.int32]] = []
        self._count, self._stride = 0, 1

    def add(self, values: NDArray[np.floating], channels: NDArray[np.int32]) -> None:
        """Add elements ``(n,)`` and the channel of each; where there are too many, a third stays.

        A third, not half: a stride of 2 would see every other column of an image.
        """
        self._values.append(values[:: self._stride].astype(np.float32))
        self._channels.append(channels[:: self._stride])
        self._count += len(self._values[-1])
        if self._count > MOST_DRAWN:
            self._stride *= 3
            self._values = [np.concatenate(self._values)[::3]]
            self._channels = [np.concatenate(self._channels)[::3]]
            self._count = len(self._values[0])

    def scaled(self, factor: NDArray[np.floating]) -> Drawn:
        """The sample of the same tensor times a factor by channel, ``(channels,)``."""
        result = Drawn()
        result._count, result._stride = self._count, self._stride
        result._channels = self._channels
        result._values = [
            np.asarray(values * factor[channels], np.float32)
            for values, channels in zip(self._values, self._channels, strict=True)
        ]
        return result

    def histogram(self) -> Histogram:
        """The distribution of the elements."""
        found = Histogram()
        for values in self._values:
            found.add(values)
        return found


@dataclass
class TensorStatistics:
    """The range and the distribution of one tensor over all samples.

    Attributes:
        minimum: the smallest value, exact, in real units; 0 where the graph shows that there is no
            negative one.
        maximum: the largest value, exact.
        histogram: the distribution, of a sample of the elements.
        channel_minimum: as `minimum`, of each channel (axis 1), ``(channels,)`` float32; None where
            it was not asked for.
        channel_maximum: as `maximum`, likewise.
        channel_mean: the mean of each channel over all elements, ``(channels,)`` float64.
        channel_samples: how many samples are behind `channel_mean`.
        drawn: elements with their channels, where these were asked for.
        finite: False where a NaN or an infinity was seen (a mask of −∞, for one): such a
            tensor has no range and stays float.
    """

    minimum: float = np.inf
    maximum: float = -np.inf
    histogram: Histogram = field(default_factory=Histogram)
    channel_minimum: Channels | None = None
    channel_maximum: Channels | None = None
    channel_mean: NDArray[np.float64] | None = None
    channel_samples: int = 0
    drawn: Drawn | None = None
    finite: bool = True

    @property
    def has_range(self) -> bool:
        """Whether more than the mean was asked for."""
        return self.histogram.total > 0 or not self.finite

    @property
    def mean(self) -> float:
        """The mean of the sampled elements."""
        return self.histogram.mean

    def update(self, minimum: float, maximum: float, values: NDArray[np.floating]) -> None:
        """Add one batch: its exact minimum and maximum, and a sample of its elements.

        Only finite values enter the histogram; see `finite`.
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
        self,
        minimum: Channels,
        maximum: Channels,
        values: NDArray[np.floating],
        channels: NDArray[np.int32],
    ) -> None:
        """Add the smallest and largest values ``(channels,)`` of one batch, and drawn elements."""
        if self.channel_minimum is None or self.channel_maximum is None or self.drawn is None:
            self.channel_minimum, self.channel_maximum = minimum.copy(), maximum.copy()
            self.drawn = Drawn()
        else:
            np.minimum(self.channel_minimum, minimum, out=self.channel_minimum)
            np.maximum(self.channel_maximum, maximum, out=self.channel_maximum)
        self.drawn.add(values, channels)

    def update_mean(self, mean: NDArray[np.floating], samples: int) -> None:
        """Add the mean of each channel over one batch, ``(channels,)``, of so many samples."""
        self.finite = self.finite and bool(np.isfinite(mean).all())
        self.channel_samples += samples
        previous = np.zeros(mean.shape) if self.channel_mean is None else self.channel_mean
        # Infinite values have no mean: the result is NaN, which readers must expect.
        with np.errstate(invalid="ignore"):
            self.channel_mean = previous + (mean - previous) * (samples / self.channel_samples)

    def scaled(self, factor: NDArray[np.floating]) -> TensorStatistics | None:
        """Those of the tensor times a positive factor by channel, ``(channels,)``.

        None where they do not follow, since those of the channels were not asked for. The histogram
        is that of the elements that were kept with their channels.
        """
        mean, low, high = self.channel_mean, self.channel_minimum, self.channel_maximum
        if not self.has_range and mean is not None:
            scaled = mean * np.repeat(factor, len(mean) // len(factor))
            return TensorStatistics(channel_mean=scaled, channel_samples=self.channel_samples)
        if low is None or high is None or self.drawn is None or not self.finite:
            return None
        factor = np.repeat(factor, len(low) // len(factor))
        low, high, drawn = low * factor, high * factor, self.drawn.scaled(factor)
        return TensorStatistics(
            float(low.min()), float(high.max()), drawn.histogram(),
            low.astype(np.float32), high.astype(np.float32),
            None if mean is None else mean * factor, self.channel_samples, drawn,
        )  # fmt: skip


def calibrate(
    model: ir.Model,
    tensors: Sequence[str],
    samples: Dataset,
    batch_size: int,
    channel_tensors: Collection[str] = (),
    means: Collection[str] = (),
    workers: int | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, TensorStatistics]:
    """The statistics of tensors over all samples, in one pass.

    Memory does not grow with the number of samples. The result is the same, bit for bit,
    whatever the number of workers.

    Args:
        model: not changed.
        tensors: names of float graph inputs or node outputs, of any rank.
        samples: preprocessed samples.
        batch_size: samples in one run of the model.
        channel_tensors: tensors whose channels (axis 1) are wanted; those that are not in
            `tensors` are added to them.
        means: tensors of whose channels the mean is wanted, if nothing else.
        workers: sessions that run side by side; None means one per core.
        on_batch: called after each batch with the number of samples done so far.

    Returns:
        statistics by tensor name, in the order of `tensors`.

    Raises:
        ValueError: the main graph has no such tensor, or its rank has no axis 1.
    """
    if not (tensors or channel_tensors or means):
        return {}
    observed, observers = observe(model, tensors, channel_tensors, means, batch_size)
    outputs = list(dict.fromkeys(name for observer in observers for name in observer.outputs))
    pool = SessionPool(observed, outputs, workers)
    sizes: deque[int] = deque()
    statistics = {observer.tensor: TensorStatistics() for observer in observers}
    done = 0
    for arrays in pool.map(_counted(samples.batches(batch_size), sizes)):
        size = sizes.popleft()
        for observer in observers:
            _take_in(statistics[observer.tensor], observer, arrays, size)
        done += size
        if on_batch is not None:
            on_batch(done)
    return statistics


def _counted(batches: Iterator[Arrays], sizes: deque[int]) -> Iterator[Feeds]:
    """The same batches; their sizes are noted, since they are read ahead of the results."""
    for feeds in batches:
        first = next(iter(feeds.values()))
        sizes.append(first.shape[0] if first.ndim else 1)
        yield feeds


def _take_in(
    statistics: TensorStatistics, observer: Observer, arrays: Arrays, samples: int
) -> None:
    if observer.mean:
        # Rows are those of samples, or one of all.
        mean = arrays[observer.mean].astype(np.float64)
        rows = mean.reshape(-1, mean.shape[1]) if mean.ndim > 1 else mean[None]
        if rows.size:
            statistics.update_mean(rows.mean(axis=0), samples)
    sample = arrays[observer.sample] if observer.sample else np.empty(0, np.float32)
    if sample.size == 0:
        return
    sample = _before_slope(sample, observer.slope)
    maximum = _before_slope(arrays[observer.maximum], observer.slope)
    minimum = np.zeros_like(maximum)
    if observer.minimum:
        minimum = _before_slope(arrays[observer.minimum], observer.slope)
    statistics.update(float(minimum.min()), float(maximum.max()), sample)
    if observer.shape and statistics.finite:
        _, channels, *inner = map(int, arrays[observer.shape])
        places = _channels_of(sample.size, observer.stride, channels, math.prod(inner))
        low, high = (each.reshape(-1, channels) for each in (minimum, maximum))
        statistics.update_channels(low.min(axis=0), high.max(axis=0), sample, places)


@lru_cache
def _channels_of(count: int, stride: int, channels: int, inner: int) -> NDArray[np.int32]:
    """The channel of each of `count` elements, every k-th of a tensor ``(N, channels, inner)``."""
    return (np.arange(count) * stride // inner % channels).astype(np.int32)


def _before_slope(values: np.ndarray, slope: float) -> np.ndarray:
    """What LeakyRelu of this slope turned into these values."""
    return (
        values if slope == 1.0 else np.where(values < 0, values / values.dtype.type(slope), values)
    )


def infinite_tensors(statistics: Mapping[str, TensorStatistics]) -> frozenset[str]:
    """Names of the tensors that hold NaN or infinities, and have no range."""
    return frozenset(name for name, found in statistics.items() if not found.finite)
