from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxq.numerics.distances import (
    confidence_drop,
    kl_divergence,
    log_probabilities,
    look_like_probabilities,
)

rows = arrays(np.float32, (3, 5), elements=st.floats(-30, 30, width=32))


@settings(deadline=None)
@given(rows)
def test_logits_become_a_distribution(logits: np.ndarray) -> None:
    probabilities = np.exp(log_probabilities(logits, False))
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert look_like_probabilities(probabilities.astype(np.float32))


@settings(deadline=None)
@given(rows)
def test_logits_and_their_softmax_give_the_same_logarithms(logits: np.ndarray) -> None:
    expected = log_probabilities(logits, False)
    found = log_probabilities(np.exp(expected), True)
    # Below 1e-12 a probability is floored; above it the floor shifts the sum by 5e-12 at most.
    large = expected > np.log(1e-11)
    assert np.allclose(found[large], expected[large], atol=1e-9)


@settings(deadline=None)
@given(rows, rows)
def test_kl_is_not_negative_and_zero_for_equal_rows(p: np.ndarray, q: np.ndarray) -> None:
    teacher, student = log_probabilities(p, False), log_probabilities(q, False)
    assert np.all(kl_divergence(teacher, student) >= -1e-12)
    assert np.all(kl_divergence(teacher, teacher) == 0)


def test_confidence_drop_is_what_the_teacher_loses() -> None:
    teacher = np.log(np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]]))
    drop = confidence_drop(teacher, np.array([0, 0]), np.array([1, 0]))
    assert drop == pytest.approx([0.5, 0.0])


@pytest.mark.parametrize("values", [[[0.5, 0.6]], [[-0.1, 1.1]], [[2.0, -1.0]]])
def test_logits_do_not_look_like_probabilities(values: list[list[float]]) -> None:
    assert not look_like_probabilities(np.array(values, np.float32))
