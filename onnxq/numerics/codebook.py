"""Codebooks: weights and biases as indices into few centroids."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.numerics.kmeans import Block, Floats, collect_points, kmeans, nearest
from onnxq.numerics.quantizers import (
    CODEBOOK,
    FLOAT_CODEBOOK,
    WEIGHT,
    FloatArray,
    IntArray,
    Quantizer,
    per_channel,
)

SMALLEST_SHARE = 1e-4
"""A channel's scale is at least this share of the largest: dead ones are safe to divide by."""

BLOCK = 2**22
"""Weights handled at once."""


@dataclass(frozen=True)
class Codebook:
    """The centroids of one weight, and the index of each element.

    Attributes:
        centroids: ascending, (K,), float32, or int8 for integer kernels.
        indices: uint8, the shape of the weight.
        scale: float32, (channels,), or () where there is one for all.
    """

    centroids: NDArray[np.float32] | NDArray[np.int8]
    indices: NDArray[np.uint8]
    scale: FloatArray

    @property
    def quantizer(self) -> Quantizer:
        """The kind: of integers for integer kernels, or float."""
        return CODEBOOK if self.centroids.dtype == CODEBOOK.integer else FLOAT_CODEBOOK


def fit_codebook(weight: FloatArray, count: int, axis: int | None, largest: int | None) -> Codebook:
    """The codebook of nearly least squared error; see `fit_codebooks`."""
    return fit_codebooks(weight, [count], axis, largest)[count]


def fit_codebooks(
    weight: FloatArray, counts: Collection[int], axis: int | None, largest: int | None
) -> dict[int, Codebook]:
    """Codebooks of several sizes, each of nearly least squared error.

    Args:
        weight: float32.
        counts: every K to fit, at most 256; there are fewer centroids where integers coincide.
        axis: the axis of the scales, or None for one scale.
        largest: the largest integer of int8 centroids; None leaves them float.

    Returns:
        By K; each takes one byte per weight, and is the same whatever the other counts.
    """
    scale = _spread(weight, axis)
    importance = np.square(scale)

    def blocks() -> Iterator[Block]:
        for where, values in _normalised(weight, scale, axis):
            yield values, _at(importance, weight.ndim, axis, where)

    tables = kmeans(collect_points(blocks, weight.size), counts)
    return {k: _codebook(weight, tables[k], scale, axis, largest) for k in counts}


def _codebook(
    weight: FloatArray, found: Floats, scale: FloatArray, axis: int | None, largest: int | None
) -> Codebook:
    table = found.astype(np.float32)
    if largest is None:
        return Codebook(table, _indices(weight, table, scale, axis), scale)
    step = np.float32(max(float(np.abs(table).max()), 1e-30) / largest)
    centroids = np.unique(np.rint(table / step)).astype(CODEBOOK.integer)
    indices = _indices(weight, centroids.astype(np.float32) * step, scale, axis)
    return Codebook(centroids, indices, np.asarray(scale * step, np.float32))


def _indices(
    weight: FloatArray, table: FloatArray, scale: FloatArray, axis: int | None
) -> NDArray[np.uint8]:
    """The index of the centroid nearest to each weight divided by its scale."""
    indices = np.empty(weight.shape, np.uint8)
    for where, values in _normalised(weight, scale, axis):
        indices[where] = nearest(values, table)
    return indices


def uniform_codebook(integers: IntArray, num_bits: int, scale: FloatArray) -> Codebook:
    """Weights of n bits as a codebook of all 2^n - 1 integers: index = integer + 2^(n-1) - 1.

    Args:
        integers: int8, +-(2^(n-1) - 1) at most.
        num_bits: 2 to 8.
        scale: real units per integer, (channels,) or ().
    """
    largest = WEIGHT.largest(num_bits)
    table = np.arange(-largest, largest + 1, dtype=np.int8)
    return Codebook(table, (integers.astype(np.int16) + largest).astype(np.uint8), scale)


def uniform_bits(table: NDArray[np.generic]) -> int | None:
    """The n of a table that holds all integers of an n-bit weight and no others; else None."""
    num_bits = (table.size + 1).bit_length() - 1
    if table.dtype != np.int8 or not 2 <= num_bits <= 8:
        return None
    largest = WEIGHT.largest(num_bits)
    return num_bits if np.array_equal(table, np.arange(-largest, largest + 1)) else None


def look_up(codebook: Codebook, scale: FloatArray, axis: int | None) -> FloatArray:
    """The weights of a codebook under a scale, as the exported nodes compute them."""
    table = codebook.centroids.astype(np.float32)
    return table[codebook.indices] * per_channel(scale, codebook.indices.ndim, axis)


def _spread(weight: FloatArray, axis: int | None) -> FloatArray:
    """Root mean square of each channel; 1 where there is no axis."""
    if axis is None:
        return np.asarray(1, np.float32)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    squares = np.zeros(weight.shape[axis])
    for where in _where(weight.shape, axis):
        squares[where[-1]] = np.square(weight[where]).mean(axis=others, dtype=np.float64)
    found = np.sqrt(squares)
    largest = found.max(initial=0.0)
    return np.maximum(found, SMALLEST_SHARE * (largest or 1.0)).astype(np.float32)


def _where(shape: tuple[int, ...], axis: int | None) -> Iterator[tuple[slice, ...]]:
    """Slices that cut an array into blocks along the channels, or along the first axis."""
    lead = axis or 0
    step = max(1, BLOCK * shape[lead] // max(1, int(np.prod(shape))))
    for start in range(0, shape[lead], step):
        yield (*[slice(None)] * lead, slice(start, start + step))


def _at(scale: FloatArray, rank: int, axis: int | None, where: tuple[slice, ...]) -> FloatArray:
    shaped = per_channel(scale, rank, axis)
    return shaped if axis is None else shaped[where]


def _normalised(
    weight: FloatArray, scale: FloatArray, axis: int | None
) -> Iterator[tuple[tuple[slice, ...], FloatArray]]:
    for where in _where(weight.shape, axis):
        yield where, weight[where] / _at(scale, weight.ndim, axis, where)


def share_biases(bias: FloatArray, count: int) -> FloatArray:
    """Each bias replaced by the nearest of K centroids of least squared error.

        b <- c[argmin_k |b - c_k|]

    K = 1 gives the mean. A K of at least the number of different biases changes nothing.

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
