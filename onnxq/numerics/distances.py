"""Distances between outputs: KL divergence, SQNR, equality up to rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SMALLEST_PROBABILITY = 1e-12


def log_probabilities(rows: np.ndarray, probabilities: bool) -> np.ndarray:
    """The logarithm of each row's distribution.

    log p_i = z_i - log sum_j exp z_j for logits z; probabilities are normalised to a sum of 1
    and floored at 1e-12.

    Args:
        rows: `(n, classes)` float.
        probabilities: whether rows are probabilities, not logits.

    Returns:
        float64 `(n, classes)`.
    """
    rows = rows.astype(np.float64)
    if probabilities:
        floored = np.maximum(rows, SMALLEST_PROBABILITY)
        logs: np.ndarray = np.log(floored / floored.sum(axis=1, keepdims=True))
        return logs
    shifted = rows - rows.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs


def kl_divergence(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """KL(p || q) = sum_i p_i (log p_i - log q_i) of each row, in nats.

    Args:
        teacher: log p, `(n, classes)`.
        student: log q, `(n, classes)`.
    """
    divergence: np.ndarray = (np.exp(teacher) * (teacher - student)).sum(axis=1)
    return divergence


def confidence_drop(
    teacher: np.ndarray, decisions: np.ndarray, other_decisions: np.ndarray
) -> np.ndarray:
    """p_T(c_T) - p_T(c_S) of each row: the teacher's probability that a changed decision loses.

    Its mean estimates the drop of the top-1 accuracy without labels.

    Args:
        teacher: log p_T, `(n, classes)`.
        decisions: c_T, int `(n,)`.
        other_decisions: c_S, int `(n,)`.
    """
    rows = np.arange(len(teacher))
    drop: np.ndarray = np.exp(teacher[rows, decisions]) - np.exp(teacher[rows, other_decisions])
    return drop


def holds_decisions(shape: tuple[int, ...], count: int) -> bool:
    """Whether a tensor of `count` samples is (count, classes >= 2), or has trailing 1s."""
    return shape[:1] == (count,) and len(shape) > 1 and 1 < shape[1] == math.prod(shape[1:])


def look_like_probabilities(rows: np.ndarray) -> bool:
    """Whether all values lie in [0, 1] and each row sums to 1."""
    if not rows.size or rows.min() < 0 or rows.max() > 1:
        return False
    return bool(np.allclose(rows.sum(axis=1), 1, atol=1e-3))


RELATIVE_TOLERANCE = 1e-4
"""Largest difference of a float32 output, relative to its largest absolute value."""

UNITS_IN_LAST_PLACE = 2
"""Absolute difference in units of the last place of 1: so exact is a probability near 0."""

FLIPPED_SHARE = 0.01
"""Share of integer elements that may differ: a near tie decided the other way."""

NOISE_FACTOR = 4.0
"""How many times its own rounding noise a model may change by: folding rounds elsewhere."""

Outputs = list[Any]


def find_difference(
    names: Sequence[str],
    expected: Sequence[Outputs],
    found: Sequence[Outputs],
    noise: Mapping[str, float] | None = None,
) -> str | None:
    """Where two lists of outputs differ, in words; None where they are equal.

    Floats are equal if max|a − b| ≤ max(r·max|a|, 2ε) and they are infinite or NaN in the same
    places. ε is the machine epsilon of their dtype and r = max(1e-4, 16ε), which is 1e-4 for
    float32. Of other elements at most 1 in 100 may differ (an index or a label that depends on a
    near tie). Shapes and dtypes must be the same. `noise` holds, by name, absolute differences that
    are allowed above that: see `rounding_noise`.
    """
    noise = noise or {}
    for left, right in zip(expected, found, strict=True):
        for name, a, b in zip(names, left, right, strict=True):
            reason = _difference(a, b, noise.get(name, 0.0))
            if reason is not None:
                return f'output "{name}" {reason}'
    return None


def rounding_noise(
    names: Sequence[str], first: Sequence[Outputs], second: Sequence[Outputs]
) -> dict[str, float]:
    """NOISE_FACTOR·max|a − b| by name, of two runs whose arithmetic differs only in rounding."""
    noise = dict.fromkeys(names, 0.0)
    for left, right in zip(first, second, strict=True):
        for name, a, b in zip(names, left, right, strict=True):
            if isinstance(a, np.ndarray) and np.issubdtype(a.dtype, np.floating) and a.size:
                with np.errstate(invalid="ignore"):
                    error = np.abs(a.astype(np.float64) - b.astype(np.float64))
                largest = float(np.max(error, initial=0.0, where=np.isfinite(error)))
                noise[name] = max(noise[name], NOISE_FACTOR * largest)
    return noise


def _difference(a: Any, b: Any, noise: float = 0.0) -> str | None:
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return f"has {len(b)} elements instead of {len(a)}"
        return next((r for r in map(_difference, a, b) if r), None)
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        return None if a == b else "differs"
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"is {b.dtype}{list(b.shape)} instead of {a.dtype}{list(a.shape)}"
    if not np.issubdtype(a.dtype, np.floating):
        different = int(np.count_nonzero(a != b))
        if different <= FLIPPED_SHARE * a.size:
            return None
        return f"differs in {different} of {a.size} elements"
    return _float_difference(a, b, noise)


def _float_difference(a: np.ndarray, b: np.ndarray, noise: float) -> str | None:
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return "is infinite or NaN in other places"
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return "is infinite or NaN in other ways"
    if not finite.any():
        return None
    left, right = a[finite].astype(np.float64), b[finite].astype(np.float64)
    error, size = float(np.abs(left - right).max()), float(np.abs(left).max())
    epsilon = float(np.finfo(a.dtype).eps)
    relative = max(RELATIVE_TOLERANCE, 16 * epsilon)
    if error <= max(relative * size, UNITS_IN_LAST_PLACE * epsilon, noise):
        return None
    return f"differs by {error:.3g}, its largest value being {size:.3g}"


MOST_DB = 200.0
"""Bound of the SQNR: equal tensors would have an infinite one, which JSON can't hold."""


class Noise:
    """Running sums of y^2 and (y - y')^2 in float64; elements where y is not finite are ignored.

    Attributes:
        signal: sum of y^2.
        noise: sum of (y - y')^2.
    """

    def __init__(self, signal: float = 0.0, noise: float = 0.0) -> None:
        self.signal, self.noise = signal, noise

    def add(self, y: np.ndarray, y_hat: np.ndarray) -> None:
        """Add two tensors of one shape."""
        valid = np.isfinite(y)
        if not valid.all():
            y, y_hat = y[valid], y_hat[valid]
        self.signal += float(np.square(y, dtype=np.float64).sum())
        self.noise += float(np.square(np.subtract(y, y_hat, dtype=np.float64)).sum())

    def sqnr_db(self) -> float:
        """10 log10(signal / noise) in decibels, within +-200."""
        if not math.isfinite(self.noise):
            return -MOST_DB
        if self.noise == 0:
            return MOST_DB
        ratio = 10 * math.log10(max(self.signal / self.noise, 1e-20))
        return min(max(ratio, -MOST_DB), MOST_DB)
