"""The shift that quantized weights give a layer's mean output, from mean inputs.

Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction",
2019, §4.2: E[y~] = E[y] + E[e x] with e = W~ - W, so that b <- b - e E[x] removes it.
"""

from __future__ import annotations

import numpy as np

from onnxq.numerics.qparams import FloatArray


def weight_error_shift(
    weight: FloatArray, fake: FloatArray, mean_input: np.ndarray, op_type: str, axis: int
) -> FloatArray:
    """e E[x], the mean error of each output channel.

    The borders of a padded convolution, where fewer weights meet an input, are left out
    of account.

    Args:
        weight: the float weights; Conv (out, in/group, ...), Gemm and MatMul 2-D.
        fake: the weights quantized and back, the same shape.
        mean_input: E[x] of each input channel, shape (in,).
        op_type: Conv, Gemm or MatMul.
        axis: the weight's axis of output channels.

    Returns:
        float32, shape (out,).
    """
    error = (fake - weight).astype(np.float64)
    if op_type != "Conv":
        rows = error if axis == 0 else error.T
        return np.asarray(rows @ mean_input, dtype=np.float32)
    per_input = error.reshape(error.shape[0], error.shape[1], -1).sum(axis=2)
    groups = mean_input.size // error.shape[1]
    outputs = np.repeat(np.arange(groups), error.shape[0] // groups)
    means = mean_input.reshape(groups, error.shape[1])[outputs]
    return np.asarray((per_input * means).sum(axis=1), dtype=np.float32)
