"""Biases replaced by their centroids."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxq.numerics.codebook import share_biases

BIASES = arrays(np.float32, st.integers(1, 60), elements=st.floats(-8, 8, width=16))


@given(BIASES)
def test_one_centroid_is_the_mean(bias):
    found = share_biases(bias, 1)
    assert np.unique(found).size == 1
    # float32 rounds the mean once.
    np.testing.assert_allclose(found, bias.mean(dtype=np.float64), rtol=1e-6, atol=1e-7)


@given(BIASES)
def test_as_many_centroids_as_values_change_nothing(bias):
    np.testing.assert_array_equal(share_biases(bias, np.unique(bias).size), bias)


@given(BIASES, st.integers(1, 20))
def test_at_most_k_values_and_no_worse_than_the_mean(bias, count):
    found = share_biases(bias, count)
    assert (found.shape, found.dtype) == (bias.shape, np.float32)
    assert np.unique(found).size <= count
    error, most = (
        np.square(bias - other, dtype=np.float64).sum() for other in (found, bias.mean())
    )
    if count == 1 or not (bias == 0).any():
        assert error <= most * (1 + 1e-5) + 1e-9


def test_the_mean_of_one_centroid_is_not_held_at_zero():
    bias = np.array([0, 0, 0, 4], np.float32)
    np.testing.assert_array_equal(share_biases(bias, 1), np.ones(4, np.float32))
