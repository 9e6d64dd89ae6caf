"""The clip threshold that a weight's quantizer starts with."""

from __future__ import annotations

import numpy as np

from onnxq.numerics.qparams import (
    FloatArray,
    fake_quant_weight,
    weight_scale,
    weight_threshold_max,
)

ALPHA_MIN = 0.5
"""FAT's lower bound of alpha."""
LOW_BITS, LOW_BITS_MIN = 8, 0.05
"""Below that width the bound is lower: where codes are few, far more is clipped."""

STEP = 0.01
"""Between the factors that are tried."""


def alpha_min(num_bits: int) -> float:
    """The smallest threshold of a quantizer, as a share of the largest magnitude."""
    return ALPHA_MIN if num_bits >= LOW_BITS else LOW_BITS_MIN


def weight_threshold(
    weight: FloatArray, method: str, num_bits: int, axis: int | None
) -> FloatArray:
    """T of a symmetric weight quantizer, of each channel or of all.

    - max: T = max|w| (FAT).
    - any other method: the alpha in [0.5, 1], below 8 bits in [0.05, 1], of least
      sum (w - fake_quant(w))^2, T = alpha * max|w|. Weights are few and all known: the error
      itself is the best criterion.

    Args:
        weight: float weights.
        method: a clip method.
        num_bits: width of a code.
        axis: the channel axis, or None for one threshold.

    Returns:
        float32, shape (channels,) or ().
    """
    largest = weight_threshold_max(weight, axis)
    if method == "max":
        return largest
    least = alpha_min(num_bits)
    grid = np.linspace(1.0, least, round((1.0 - least) / STEP) + 1, dtype=np.float32)
    errors = np.stack([_error(weight, largest * a, num_bits, axis) for a in grid])
    return np.asarray(largest * grid[np.argmin(errors, axis=0)], dtype=np.float32)


def _error(
    weight: FloatArray, threshold: FloatArray, num_bits: int, axis: int | None
) -> np.ndarray:
    fake = fake_quant_weight(weight, weight_scale(threshold, num_bits), num_bits, axis)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return np.asarray(np.square(weight - fake).sum(axis=others, dtype=np.float64))
