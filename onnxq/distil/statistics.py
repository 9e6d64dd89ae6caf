"""The statistics of BatchNormalization, measured anew with the weights as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.distil.network import Moments
from onnxq.learn.teacher import Targeted
from onnxq.session import Arrays, SessionPool

MOST_SAMPLES = 1024
"""More add nothing to a mean and a variance."""


class BatchStatistics:
    """Mean and variance of what enters each BatchNormalization, over the training samples.

    The network runs in training mode, each batch by its own statistics; their moments are pooled
    (Wu and Johnson 2021, "precise BatchNorm"): m = mean m_b, v = mean(v_b + m_b^2) - m^2. Nothing
    lags behind the weights, as a running mean would, and the same weights give the same numbers.

    Args:
        training: the training graph, on the teacher's names.
        moments: of its BatchNormalization.
        train: feeds of the training slice.
        batch_size: samples in a batch, as in training.
    """

    def __init__(
        self, training: ir.Model, moments: Sequence[Moments], train: Targeted, batch_size: int
    ) -> None:
        self._moments, self._train = list(moments), train
        self._size = batch_size if train.batch is None else 1
        copy = training.clone(deep_copy=False)
        values = {value.name: value for node in copy.graph for value in node.outputs}
        names = [name for m in self._moments for name in (m.batch_mean, m.batch_variance)]
        copy.graph.outputs[:] = [values[name] for name in names]
        for output in copy.graph.outputs:
            output.type = ir.TensorType(ir.DataType.FLOAT)
        self._inputs = {str(value.name) for value in copy.graph.inputs}
        self._model = copy

    def measure(self, parameters: Mapping[str, np.ndarray]) -> Arrays:
        """The statistics by name, float32 `(channels,)`."""
        if not self._moments:
            return {}
        count = min(self._train.positions, MOST_SAMPLES // (self._train.batch or 1) or 1)
        batches = self._train.batches(np.arange(_whole(count, self._size)), self._size)
        pool = SessionPool(self._model)
        fed = ({**self._needed(feeds), **parameters} for feeds in batches)
        return self._pooled(list(pool.map(fed)))

    def _needed(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        return {name: array for name, array in feeds.items() if name in self._inputs}

    def _pooled(self, found: Sequence[Arrays]) -> Arrays:
        statistics: Arrays = {}
        for each in self._moments:
            means, variances = (
                np.stack([batch[name].reshape(-1) for batch in found]).astype(np.float64)
                for name in (each.batch_mean, each.batch_variance)
            )
            mean = means.mean(axis=0)
            variance = (variances + np.square(means)).mean(axis=0) - np.square(mean)
            statistics[each.mean] = mean.astype(np.float32)
            statistics[each.variance] = np.maximum(variance, 0).astype(np.float32)
        return statistics


def _whole(count: int, size: int) -> int:
    """As many as fill batches: each counts the same, whatever it holds."""
    return count - count % size if count > size else count
