"""Analytical clipping: the clip of least error for a Laplace or a normal density.

Banner, Nahshan, Soudry, "Post-training 4-bit quantization of convolution networks for
rapid deployment" (NeurIPS 2019). With M bits over [−T, T] the expected square errors are

    Laplace(b):   2b²·exp(−T/b) + T² / (3·2²ᴹ)                                    (eq. 5)
    normal(σ):    (T² + σ²)·(1 − erf(T/√2σ)) − √(2/π)·T·σ·exp(−T²/2σ²) + T² / (3·2²ᴹ)

and their derivatives vanish at

    exp(−T/b) = (T/b) / (3·2²ᴹ),
    √(2/π)·exp(−t²/2) − t·(1 − erf(t/√2)) = t / (3·2²ᴹ),   t = T/σ.

An unsigned tensor is half of a symmetric one: its M bits cover [0, T] as M + 1 bits would
cover [−T, T], and its density is folded. Values equal to zero don't enter the fit: behind
a Relu they stand for the negative half.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxq.numerics.histogram import BINS_PER_SIDE, Histogram


def laplace_clip(num_bits: int) -> float:
    """T/b of least error for a Laplace density, e.g. 5.03 at 4 bits."""
    quotient = 3.0 * 4.0**num_bits
    return _root(lambda t: math.exp(-t) - t / quotient)


def normal_clip(num_bits: int) -> float:
    """T/σ of least error for a normal density, e.g. 2.55 at 4 bits."""
    quotient = 3.0 * 4.0**num_bits

    def derivative(t: float) -> float:
        tail = math.erfc(t / math.sqrt(2.0))
        return math.sqrt(2.0 / math.pi) * math.exp(-t * t / 2) - t * tail - t / quotient

    return _root(derivative)


def aciq_range(
    histogram: Histogram, num_bits: int, signed: bool, symmetric: bool
) -> tuple[float, float]:
    """The range by the density, Laplace or normal, under which the values are likelier.

    Args:
        histogram: the distribution of the tensor.
        num_bits: 2 to 8.
        signed: False takes positive values alone, as half of a symmetric density.
        symmetric: a signed density is centred on zero, not on its mean.

    Returns:
        (left, right) in real units, (0, 0) where the histogram holds no value to fit.
    """
    counts = histogram.counts.astype(np.float64)
    if not signed:
        counts[:BINS_PER_SIDE] = 0.0
    if not counts.any():
        return 0.0, 0.0
    weights = counts / counts.sum()
    centred = signed and not symmetric
    mean = float(weights @ histogram.centres) if centred else 0.0
    threshold = _threshold(weights, histogram.centres - mean, num_bits + (not signed))
    return (mean - threshold, mean + threshold) if signed else (0.0, threshold)


def _threshold(
    weights: NDArray[np.float64], deviations: NDArray[np.float64], num_bits: int
) -> float:
    """T of the likelier density, each fitted by maximum likelihood."""
    b = float(weights @ np.abs(deviations))
    sigma = math.sqrt(float(weights @ deviations**2))
    if b == 0.0:
        # One bin holds everything: there is no width to fit.
        return 0.0
    laplace_likelihood = -math.log(2.0 * b) - 1.0
    normal_likelihood = -math.log(sigma * math.sqrt(2.0 * math.pi)) - 0.5
    if laplace_likelihood > normal_likelihood:
        return b * laplace_clip(num_bits)
    return sigma * normal_clip(num_bits)


def _root(falling: Callable[[float], float]) -> float:
    """The zero of a function that is positive at 0 and falls through zero before 64."""
    low, high = 0.0, 64.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0.0 else (low, middle)
    return low
