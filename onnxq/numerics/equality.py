"""Whether two lists of outputs are the same, to float tolerance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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

    Floats are equal if max|a − b| ≤ max(r·max|a|, 2ε) and they are infinite or NaN in the
    same places; ε is the machine epsilon of their dtype and r = max(1e-4, 16ε), which is
    1e-4 for float32. Of other elements at most 1 in 100 may differ (an index or a label
    that hangs on a near tie); shapes and dtypes must be the same. `noise` holds, by name,
    absolute differences that are allowed above that: see `rounding_noise`.
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
    """By name, NOISE_FACTOR·max|a − b| of two runs whose arithmetic is equal but for rounding."""
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
