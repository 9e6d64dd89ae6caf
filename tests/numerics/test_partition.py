"""Cuts of ordered points against the dynamic programme over all cuts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.numerics import kmeans
from onnxq.numerics.kmeans import Points, make_points, partitions

KINDS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy tails": lambda rng, n: rng.standard_t(2, n),
    "even": lambda rng, n: rng.uniform(size=n),
    "many scales": lambda rng, n: np.exp(4 * rng.normal(size=n)),
    "clumps": lambda rng, n: rng.choice([-1, 0, 5, 6], n) + 0.1 * rng.normal(size=n),
}


def drawn(kind: str, size: int, spread: float, seed: int) -> Points:
    rng = np.random.default_rng(seed)
    values = np.unique(KINDS[kind](rng, size))
    return make_points(values, np.exp(spread * rng.normal(size=values.size)))


def interval_errors(points: Points) -> np.ndarray:
    """The error of every interval by beginning and end; infinite where it is empty."""
    ends = np.arange(points.values.size + 1)
    total = points.total - points.total[:, None]
    moment = points.moment - points.moment[:, None]
    energy = points.energy - points.energy[:, None]
    full = ends > ends[:, None]
    return np.where(full, energy - moment**2 / np.where(full, total, 1), np.inf)


def least_errors(points: Points, most: int) -> list[float]:
    """The error of the best cuts into 1 ... most intervals, all cuts tried."""
    errors = interval_errors(points)
    rows = [errors[0]]
    for _ in range(1, most):
        rows.append((rows[-1][:, None] + errors).min(axis=0))
    return [float(row[-1]) for row in rows]


def error(points: Points, cuts: np.ndarray) -> float:
    return float(interval_errors(points)[cuts[:-1], cuts[1:]].sum())


@pytest.mark.parametrize("spread", [0.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_within_a_thousandth_of_the_best_cuts(kind, spread):
    points = drawn(kind, 300, spread, 5)
    counts = [1, 2, 3, 5, 8, 13, 20, 32, 48, 64, 100]
    best = least_errors(points, max(counts))
    for count, cuts in partitions(points, counts).items():
        assert error(points, cuts) <= 1.001 * best[count - 1] + 1e-12 * points.energy[-1]


@pytest.mark.parametrize("kind", ["normal", "clumps", "many scales"])
def test_many_intervals_of_many_points(kind):
    points = drawn(kind, 900, 1.0, 1)
    best = least_errors(points, 128)
    for count, cuts in partitions(points, [2, 8, 128]).items():
        assert error(points, cuts) <= 1.003 * best[count - 1] + 1e-12 * points.energy[-1]


@given(st.sampled_from(list(KINDS)), st.integers(3, 90), st.integers(0, 99), st.data())
@settings(deadline=None, max_examples=40)
def test_cuts_ascend_and_do_not_depend_on_other_counts(kind, size, seed, data):
    points = drawn(kind, size, 1.0, seed)
    counts = data.draw(st.sets(st.integers(1, points.values.size - 1), min_size=1, max_size=6))
    together = partitions(points, counts)
    for count in counts:
        cuts = together[count]
        assert cuts.size == count + 1 and cuts[0] == 0 and cuts[-1] == points.values.size
        assert (np.diff(cuts) > 0).all()
        np.testing.assert_array_equal(partitions(points, [count])[count], cuts)


def test_no_cut_can_move_by_one_point():
    points = drawn("normal", 900, 1.0, 2)
    for cuts in partitions(points, [2, 8, 100]).values():
        for k in range(1, cuts.size - 1):
            for step in (-1, 1):
                moved = cuts.copy()
                moved[k] += step
                assert error(points, moved) >= error(points, cuts) * (1 - 1e-9)


def test_the_neighbours_that_cost_least_merge_first():
    points = drawn("heavy tails", 40, 1.0, 3)
    cuts, order = list(range(41)), []
    while len(cuts) > 2:
        merged = [cuts[:k] + cuts[k + 1 :] for k in range(1, len(cuts) - 1)]
        best = min(merged, key=lambda each: error(points, np.array(each)))
        order += set(cuts) - set(best)
        cuts = best
    assert kmeans.lasting_cuts(points).tolist() == order[::-1]


def test_merging_from_groups_ends_near_merging_from_points(monkeypatch):
    points = drawn("heavy tails", 1500, 1.0, 0)
    fine = partitions(points, [4, 32])
    monkeypatch.setattr(kmeans, "GROUPS", 400)
    coarse = partitions(points, [4, 32])
    for count in fine:
        assert error(points, coarse[count]) <= 1.01 * error(points, fine[count])


def test_points_that_weigh_next_to_nothing_do_no_harm():
    values = np.linspace(-1, 1, 500)
    weights = np.where(np.arange(500) % 2, 1.0, 1e-20)
    cuts = partitions(make_points(values, weights), [2, 16, 100])
    assert all((np.diff(each) > 0).all() for each in cuts.values())
