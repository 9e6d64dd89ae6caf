"""One-dimensional k-means against many starts of Lloyd's, and what must always hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from onnxq.numerics import kmeans as kmeans_module
from onnxq.numerics.kmeans import Points, collect_points, nearest, refine
from onnxq.numerics.kmeans import kmeans as kmeans_of_counts

ONE = np.ones(1, np.float32)
NUMBERS = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60)


def collected(values: np.ndarray, weights: np.ndarray = ONE) -> Points:
    return collect_points(lambda: [(values, weights)], values.size)


def kmeans(points: Points, count: int) -> np.ndarray:
    return kmeans_of_counts(points, [count])[count]


def squared_error(points: Points, centroids: np.ndarray) -> float:
    """Sum of w (x - nearest centroid)^2."""
    borders = (centroids[1:] + centroids[:-1]) / 2
    far = points.values - centroids[np.searchsorted(borders, points.values)]
    return float((points.weights * far * far).sum())


def heavy_tailed(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(4, size).astype(np.float32)


@pytest.mark.parametrize("count", [2, 3, 7, 16, 32])
def test_the_error_is_within_a_percent_of_lloyd_from_many_starts(count):
    values = heavy_tailed(4000)
    found = squared_error(collected(values), kmeans(collected(values), count))
    lloyd = KMeans(count, n_init=6, max_iter=300, random_state=0).fit(values[:, None])
    assert found <= 1.01 * lloyd.inertia_


@given(st.integers(2, 20), st.integers(0, 999), st.floats(0, 2))
@settings(deadline=None, max_examples=8)
def test_no_start_of_lloyd_ends_a_percent_lower(count, seed, spread):
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, 300).astype(np.float32)
    weights = np.exp(spread * rng.normal(size=300)).astype(np.float32)
    points = collected(values, weights)
    starts = [np.sort(rng.choice(points.values, count, replace=False)) for _ in range(100)]
    best = min(squared_error(points, refine(points, start)) for start in starts)
    assert squared_error(points, kmeans(points, count)) <= 1.01 * best


def test_few_points_are_partitioned_exactly():
    values = np.random.default_rng(2).normal(0, 1, 9).astype(np.float32)
    ordered = np.sort(values).astype(np.float64)
    best = min(
        sum(np.square(part - part.mean()).sum() for part in np.split(ordered, [a, b]))
        for a in range(1, 9)
        for b in range(a + 1, 9)
    )
    assert squared_error(collected(values), kmeans(collected(values), 3)) == pytest.approx(best)


@given(NUMBERS, st.integers(1, 12), st.data())
@settings(deadline=None, max_examples=40)
def test_one_more_centroid_never_raises_the_error(numbers, count, data):
    points = collected(np.array(numbers, np.float32))
    found = kmeans(points, count)
    more = data.draw(st.floats(-100, 100, width=32))
    better = refine(points, np.sort(np.append(found, more)))
    slack = 1e-9 * (1 + points.energy[-1])
    assert squared_error(points, better) <= squared_error(points, found) + slack
    assert squared_error(points, kmeans(points, count + 1)) <= squared_error(points, found) + slack


@given(NUMBERS, st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_centroids_ascend_indices_are_in_range_and_a_second_run_changes_nothing(numbers, count):
    values = np.array(numbers, np.float32)
    centroids = kmeans(collected(values), count).astype(np.float32)
    assert centroids.size == min(count, np.unique(values).size)
    assert (np.diff(centroids) >= 0).all()
    indices = nearest(values, centroids)
    assert indices.max(initial=0) < centroids.size
    rounded = centroids[indices]
    np.testing.assert_array_equal(
        kmeans(collected(rounded), count).astype(np.float32), np.unique(rounded)
    )


@given(NUMBERS, st.integers(2, 9))
@settings(deadline=None, max_examples=50)
def test_each_number_gets_the_nearest_centroid(numbers, count):
    values = np.array(numbers, np.float32)
    centroids = kmeans(collected(values), count).astype(np.float32)
    distance = np.abs(values.astype(np.float64)[:, None] - centroids)
    chosen = distance[np.arange(values.size), nearest(values, centroids)]
    assert (chosen <= distance.min(axis=1) + 1e-5).all()


def test_important_numbers_pull_the_centroids():
    values = np.array([2, 3, 10, 11], np.float32)
    weights = np.array([1, 9, 1, 1], np.float32)
    np.testing.assert_allclose(kmeans(collected(values, weights), 2), [2.9, 10.5])


def test_zero_stays_exact_in_a_sparse_layer_and_only_there():
    values = heavy_tailed(5000)
    assert 0 not in kmeans(collected(values), 8)
    values[::10] = 0
    assert 0 in kmeans(collected(values), 8)
    assert 0 in kmeans(collected(np.abs(values) + (values != 0)), 8)


def test_zero_stays_exact_whatever_other_counts_are_asked_for():
    values = heavy_tailed(3000)
    values[::8] = 0
    points = collected(values)
    for count, centroids in kmeans_of_counts(points, [2, 5, 32, 256]).items():
        assert np.count_nonzero(centroids == 0) == 1
        np.testing.assert_array_equal(kmeans(points, count), centroids)


def test_many_numbers_fall_into_bins(monkeypatch):
    values = heavy_tailed(200_000).reshape(1000, 200)
    weights = np.linspace(1, 2, 1000, dtype=np.float32)[:, None]
    exact = collected(values, weights)
    monkeypatch.setattr(kmeans_module, "MOST_POINTS", 2**16)
    blocks = [(values[i : i + 300], weights[i : i + 300]) for i in range(0, 1000, 300)]
    binned = collect_points(lambda: blocks, values.size)
    assert binned.values.size <= 2**16
    for count in (4, 32, 256):
        found, best = kmeans(binned, count), kmeans(exact, count)
        assert squared_error(exact, found) <= 1.001 * squared_error(exact, best)


def test_the_same_numbers_give_the_same_bits():
    values = heavy_tailed(30_000)
    assert kmeans(collected(values), 32).tobytes() == kmeans(collected(values), 32).tobytes()
