from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.data.files import read_rows
from onnxq.runtime.dataset import Samples, spread


def numbered(count: int) -> Samples:
    rows = {"x": np.arange(count, dtype=np.float32)[:, None]}
    return Samples(partial(read_rows, rows, ()), np.arange(count))


@given(count=st.integers(2, 2000), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_split_is_two_disjoint_parts_in_order(count, seed):
    train, held_out = numbered(count).split(seed=seed)
    both = np.concatenate([train.places, held_out.places])
    np.testing.assert_array_equal(np.sort(both), np.arange(count))
    assert (np.diff(train.places) > 0).all() and (np.diff(held_out.places) > 0).all()
    assert len(train) >= 1 and len(held_out) >= 1


@pytest.mark.parametrize(
    ("count", "held_out"), [(2, 1), (10, 5), (128, 64), (200, 64), (320, 64), (512, 102)]
)
def test_a_fifth_is_held_back_but_at_least_64_where_half_remains(count, held_out):
    assert len(numbered(count).split()[1]) == held_out


def test_a_single_sample_is_in_both_parts():
    train, held_out = numbered(1).split()
    assert len(train) == len(held_out) == 1


def test_split_depends_on_the_seed_alone():
    first, again, other = (numbered(100).split(seed=s)[1].places for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@given(total=st.integers(1, 500), data=st.data())
@settings(deadline=None, max_examples=60)
def test_spread_takes_one_from_each_stretch(total, data):
    n = data.draw(st.integers(1, total))
    chosen = spread(total, n, 0)
    assert len(chosen) == n and (np.diff(chosen) > 0).all()
    assert chosen[0] >= 0 and chosen[-1] < total
    assert np.abs(chosen - np.arange(n) * total / n).max() <= total / n


def test_views_compose():
    samples = numbered(50)
    taken = samples.take(10).subset([9, 0, 4])
    found = np.concatenate([b["x"][:, 0] for b in taken.batches(2)])
    np.testing.assert_array_equal(found, taken.places)
    assert set(taken.places) == set(samples.take(10).places[[9, 0, 4]])
    assert samples.take(50) is samples
