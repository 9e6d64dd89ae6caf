"""The calibrator: runs a model on samples and collects statistics of its tensors."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.calibrate.observers import Observer, observe
from onnxq.numerics.histogram import Histogram
from onnxq.runtime.dataset import Dataset
from onnxq.runtime.session import Arrays, Feeds, SessionPool

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
        self, minimum: Channels, maximum: Channels, mean: Channels, elements: int
    ) -> None:
        """Add the minimum, maximum and mean of each channel over one batch.

        Args:
            minimum: ``(channels,)``.
            maximum: ``(channels,)``.
            mean: ``(channels,)``.
            elements: a weight in proportion to the number of elements of each mean.
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


def calibrate(
    model: ir.Model,
    tensors: Sequence[str],
    samples: Dataset,
    batch_size: int,
    channel_tensors: Sequence[str] = (),
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
        workers: sessions that run side by side; None means one per core.
        on_batch: called after each batch with the number of samples done so far.

    Returns:
        statistics by tensor name, in the order of `tensors`.

    Raises:
        ValueError: the main graph has no such tensor, or its rank has no axis 1.
    """
    wanted = list(dict.fromkeys([*tensors, *channel_tensors]))
    if not wanted:
        return {}
    observed, observers = observe(model, wanted, set(channel_tensors), batch_size)
    outputs = [name for observer in observers for name in observer.outputs]
    pool = SessionPool(observed, outputs, workers)
    sizes: deque[int] = deque()
    statistics = {observer.tensor: TensorStatistics() for observer in observers}
    done = 0
    for arrays in pool.map(_counted(samples.batches(batch_size), sizes)):
        for observer in observers:
            _take_in(statistics[observer.tensor], observer, arrays)
        done += sizes.popleft()
        if on_batch is not None:
            on_batch(done)
    return statistics


def _counted(batches: Iterator[Arrays], sizes: deque[int]) -> Iterator[Feeds]:
    """The same batches; their sizes are noted, since they are read ahead of the results."""
    for feeds in batches:
        first = next(iter(feeds.values()))
        sizes.append(first.shape[0] if first.ndim else 1)
        yield feeds


def _take_in(statistics: TensorStatistics, observer: Observer, arrays: Arrays) -> None:
    sample = arrays[observer.sample]
    if sample.size == 0:
        return
    minimum, maximum = arrays[observer.minimum], arrays[observer.maximum]
    statistics.update(float(minimum), float(maximum), sample)
    if observer.channels is not None:
        low, high, mean, size = (arrays[name] for name in observer.channels)
        statistics.update_channels(
            low.astype(np.float32), high.astype(np.float32), mean.astype(np.float64), int(size)
        )


def infinite_tensors(statistics: Mapping[str, TensorStatistics]) -> frozenset[str]:
    """Names of the tensors that hold NaN or infinities, and have no range."""
    return frozenset(name for name, found in statistics.items() if not found.finite)
