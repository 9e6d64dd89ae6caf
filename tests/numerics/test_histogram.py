from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.numerics.histogram import BINS_PER_SIDE, Histogram


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


finite = st.just(0.0) | st.builds(
    lambda sign, value: sign * value,
    st.sampled_from((-1.0, 1.0)),
    st.floats(2.0**-40, 2.0**40, width=32),
)
arrays = hnp.arrays(np.float32, st.integers(0, 40), elements=finite)
batches = st.lists(arrays, max_size=5)


def filled(parts: list[np.ndarray]) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def assert_equal(one: Histogram, other: Histogram) -> None:
    np.testing.assert_array_equal(one.counts, other.counts)
    assert one.zeros == other.zeros
    if one.counts.any():
        assert one.exponent == other.exponent


@settings(deadline=None)
@given(batches)
def test_conserves_counts_and_signs(parts: list[np.ndarray]) -> None:
    histogram = filled(parts)
    values = np.concatenate([np.empty(0, np.float32), *parts])
    assert histogram.total == values.size
    assert histogram.zeros == np.count_nonzero(values == 0)
    assert histogram.counts[:BINS_PER_SIDE].sum() == np.count_nonzero(values < 0)
    assert histogram.counts[BINS_PER_SIDE:].sum() == np.count_nonzero(values > 0)


@settings(deadline=None)
@given(batches, st.randoms())
def test_order_and_split_do_not_matter(parts: list[np.ndarray], random: object) -> None:
    values = np.concatenate([np.empty(0, np.float32), *parts])
    shuffled = np.random.default_rng(random.randrange(100)).permutation(values)  # type: ignore[attr-defined]
    assert_equal(filled(parts), filled([shuffled]))


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 40), elements=finite))
def test_counts_lie_in_the_right_bins(values: np.ndarray) -> None:
    histogram = filled([values])
    nonzero = values[values != 0]
    expected = np.floor(nonzero.astype(np.float64) / histogram.width).astype(int)
    counts = np.zeros(2 * BINS_PER_SIDE, np.int64)
    np.add.at(counts, expected + BINS_PER_SIDE, 1)
    np.testing.assert_array_equal(histogram.counts, counts)


def test_the_largest_value_is_in_the_outer_half() -> None:
    histogram = filled([np.array([0.1, -3.0, 2.5], np.float32)])
    edges = histogram.edges
    assert edges[BINS_PER_SIDE] == 0.0
    assert -2 * 3.0 <= edges[0] <= -3.0


def test_tiny_values_and_float64_and_subnormals_are_taken() -> None:
    histogram = Histogram()
    histogram.add(np.array([1e-40, -1e-42, 0.0], np.float32))
    histogram.add(np.array([1e-300, -1e300], np.float64))
    assert histogram.total == 5
    assert histogram.zeros == 1


def test_mean_is_within_half_a_bin(rng: np.random.Generator) -> None:
    values = rng.normal(2.0, 1.0, 10000).astype(np.float32)
    values[:3000] = 0.0
    histogram = filled([values])
    assert abs(histogram.mean - values.mean()) <= histogram.width / 2
    assert Histogram().mean == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_values_that_are_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Histogram().add(np.array([1.0, bad], np.float32))
