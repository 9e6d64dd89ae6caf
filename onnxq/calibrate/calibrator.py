"""Runs the samples once through an observed copy of the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir

from onnxq.calibrate.observers import Observer, observe
from onnxq.calibrate.statistics import TensorStatistics
from onnxq.session import Arrays, Feeds, SessionPool


class Batches(Protocol):
    """What calibration asks of samples."""

    def batches(self, size: int) -> Iterator[Arrays]:
        """Feeds of at most `size` samples by input name, in a fixed order."""


def calibrate(
    model: ir.Model,
    tensors: Sequence[str],
    samples: Batches,
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
    """The batches as they are, their sizes noted: batches are read ahead of the results."""
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
