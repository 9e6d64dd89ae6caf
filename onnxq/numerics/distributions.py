"""Decisions and distributions of classifiers, row by row."""

from __future__ import annotations

import math

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
    """p_T(c_T) - p_T(c_S) of each row: what the teacher thinks the other decision costs.

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
    """Whether a tensor of `count` samples is (count, classes >= 2), with sizes of 1 behind."""
    return shape[:1] == (count,) and len(shape) > 1 and 1 < shape[1] == math.prod(shape[1:])


def look_like_probabilities(rows: np.ndarray) -> bool:
    """Whether all values lie in [0, 1] and each row sums to 1."""
    if not rows.size or rows.min() < 0 or rows.max() > 1:
        return False
    return bool(np.allclose(rows.sum(axis=1), 1, atol=1e-3))
