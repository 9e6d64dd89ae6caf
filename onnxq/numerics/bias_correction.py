"""The mean error that quantized weights cause in a layer's output, from mean inputs.

Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", 2019, §4.2:
E[y~] = E[y] + E[e x] with e = W~ - W, so b <- b - e E[x] removes it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxq.numerics.quantizers import FloatArray

BLOCK = 2**22
"""Weights handled at once."""


def weight_error_shift(
    weight: FloatArray, fake: FloatArray, mean_input: np.ndarray, op_type: str, axis: int
) -> FloatArray:
    """The mean error of each output channel, e E[x].

    The borders of a padded convolution, where fewer weights meet an input, are ignored.

    Args:
        weight: the float weights; Conv (out, in/group, ...), Gemm and MatMul 2-D.
        fake: the weights quantized and converted back, the same shape.
        mean_input: E[x] of each input channel, shape (in,).
        op_type: Conv, Gemm or MatMul.
        axis: the weight's axis of output channels.

    Returns:
        float32, shape (out,).
    """
    if op_type != "Conv":
        rows, fakes = (weight, fake) if axis == 0 else (weight.T, fake.T)
        return _by_rows(rows, fakes, lambda error, _: error @ mean_input)
    means = _means_by_output(mean_input, weight.shape)

    def shift(error: np.ndarray, where: slice) -> np.ndarray:
        per_input = error.reshape(*error.shape[:2], -1).sum(axis=2)
        return np.asarray((per_input * means[where]).sum(axis=1))

    return _by_rows(weight, fake, shift)


def _by_rows(
    weight: FloatArray, fake: FloatArray, shift: Callable[[np.ndarray, slice], np.ndarray]
) -> FloatArray:
    """The error of each row of output channels, computed block by block in float64."""
    found = np.empty(len(weight), np.float32)
    step = max(1, BLOCK * len(weight) // max(1, weight.size))
    for start in range(0, len(weight), step):
        where = slice(start, start + step)
        found[where] = shift((fake[where] - weight[where]).astype(np.float64), where)
    return found


def shift_weight_gradient(
    bias_gradient: FloatArray,
    mean_input: np.ndarray,
    shape: tuple[int, ...],
    op_type: str,
    axis: int,
) -> FloatArray:
    """The part of dL/dW~ that flows through a corrected bias, -dL/db (x) E[x].

    With b = b_float - (W~ - W) E[x], a layer computes W~ (x - E[x]) + ...: its quantized weights
    see inputs without their mean.

    Args:
        bias_gradient: dL/db, (out,) elements.
        mean_input: E[x] of each input channel, shape (in,).
        shape: of the weight; Conv (out, in/group, ...), Gemm and MatMul 2-D.
        op_type: Conv, Gemm or MatMul.
        axis: the weight's axis of output channels.

    Returns:
        float32, of a shape that broadcasts to `shape`.
    """
    flat = bias_gradient.reshape(-1)
    if op_type != "Conv":
        outer = np.outer(flat, mean_input)
        return np.asarray(-(outer if axis == 0 else outer.T), dtype=np.float32)
    means = _means_by_output(mean_input, shape)
    product = -(flat[:, None] * means)
    return np.asarray(product, np.float32).reshape(*product.shape, *[1] * (len(shape) - 2))


def _means_by_output(mean_input: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """E[x] of the inputs that each output channel reads, (out, in/group)."""
    groups = mean_input.size // shape[1]
    outputs = np.repeat(np.arange(groups), shape[0] // groups)
    return np.asarray(mean_input.reshape(groups, shape[1])[outputs])
