"""Weights that a network is trained from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def he_normal(shape: Sequence[int], fan_in: int, rng: np.random.Generator) -> np.ndarray:
    """Normal values of variance 2 / fan_in (He et al. 2015, equation 10), float32.

    Args:
        shape: of the weight.
        fan_in: numbers that one output is a sum over, at least 1.
        rng: what they are drawn from.
    """
    size = np.float32(math.sqrt(2 / fan_in))
    return rng.standard_normal(tuple(shape), np.float32) * size
