from __future__ import annotations

import re

import numpy as np
import pytest

from onnxq.numerics.distances import find_difference, rounding_noise

BASE = np.array([1.0, -100.0, 3.0], dtype=np.float32)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (BASE, None),
        (BASE + np.float32(0.009), None),
        (BASE + np.float32(0.011), "differs by 0.011"),
        (BASE.astype(np.float64), "is float64"),
        (BASE[:2], r"is float32\[2\]"),
        (np.array([1, -100, np.nan], dtype=np.float32), "infinite or NaN in other places"),
    ],
)
def test_floats(found, words):
    reason = find_difference(["y"], [[BASE]], [[found]])
    assert reason is None if words is None else re.search(words, reason)


def test_nan_and_infinity_in_the_same_places_are_equal():
    odd = np.array([np.nan, np.inf, 1], dtype=np.float32)
    assert find_difference(["y"], [[odd]], [[odd.copy()]]) is None
    assert "other ways" in find_difference(["y"], [[odd]], [[-odd]])


def test_a_small_probability_is_no_more_exact_than_one():
    small = np.array([1e-6], dtype=np.float32)
    assert find_difference(["p"], [[small]], [[small + np.float32(1e-7)]]) is None


def test_half_floats_are_as_exact_as_they_can_be():
    half = np.array([17.5], dtype=np.float16)
    assert find_difference(["y"], [[half]], [[half + np.float16(0.03)]]) is None
    assert find_difference(["y"], [[half]], [[half + np.float16(1)]])


def test_one_index_in_a_hundred_may_flip():
    labels = np.arange(200)
    found = labels.copy()
    found[:2] = 7
    assert find_difference(["l"], [[labels]], [[found]]) is None
    found[:3] = 8
    assert find_difference(["l"], [[labels]], [[found]])


def test_integers_and_lists_must_be_the_same():
    labels = np.array([1, 2])
    assert "1 of 2 elements" in find_difference(["l"], [[labels]], [[np.array([1, 3])]])
    assert "2 elements instead of 1" in find_difference(["l"], [[[labels]]], [[[labels, labels]]])
    assert find_difference(["l"], [[[labels]]], [[[labels]]]) is None


def test_noise_of_the_original_itself_is_allowed():
    noisy = BASE + np.float32(0.02)
    noise = rounding_noise(["y"], [[BASE]], [[noisy]])
    assert noise["y"] == pytest.approx(4 * 0.02, rel=1e-3)
    assert find_difference(["y"], [[BASE]], [[noisy]]) is not None
    assert find_difference(["y"], [[BASE]], [[noisy]], noise) is None
    assert find_difference(["y"], [[BASE]], [[BASE + np.float32(0.1)]], noise) is not None


def test_noise_counts_finite_floats_only():
    odd = np.array([np.inf, np.nan, 1], dtype=np.float32)
    assert rounding_noise(["y"], [[odd]], [[odd]]) == {"y": 0.0}
    labels = np.arange(3)
    assert rounding_noise(["l"], [[labels]], [[labels + 1]]) == {"l": 0.0}
