"""Biases that share a few values: one for each layer in Thonglek et al., 2020."""

from __future__ import annotations

import numpy as np

from onnxq.numerics.kmeans import kmeans
from onnxq.numerics.points import collect_points
from onnxq.numerics.qparams import FloatArray


def share_biases(bias: FloatArray, count: int) -> FloatArray:
    """Each bias replaced by the nearest of K centroids, those of least squared error.

        b <- c[argmin_k |b - c_k|]

    K = 1 gives the mean; a K of at least the number of different biases changes nothing.

    Args:
        bias: float32, (channels,).
        count: K, at least 1.

    Returns:
        float32, (channels,).
    """
    if not bias.size:
        return bias
    if count == 1:
        # Of k-means one centroid may be held at zero.
        return np.full_like(bias, bias.mean(dtype=np.float64))
    points = collect_points(lambda: [(bias, np.ones((), np.float32))], bias.size)
    centroids = kmeans(points, [count])[count].astype(np.float32)
    borders = (centroids[1:].astype(np.float64) + centroids[:-1]) / 2
    return np.asarray(centroids[np.searchsorted(borders, bias)])
