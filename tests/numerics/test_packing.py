from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.numerics.packing import Field, bits_per_index, fields, pack, packed_bytes


def unpack(packed: np.ndarray, field: Field, size: int) -> np.ndarray:
    """What one field adds to each of `size` indices."""
    digits = packed.astype(np.int32)[:, None] // field.base ** np.arange(field.per_byte)
    return (digits % field.base).reshape(-1)[:size] * field.place


@given(st.integers(2, 256), st.integers(0, 50), st.integers(0, 2**32))
@settings(deadline=None, max_examples=200)
def test_what_is_packed_comes_out_again(count, size, seed):
    indices = np.random.default_rng(seed).integers(0, count, size).astype(np.uint8)
    packed = [pack(indices, field) for field in fields(count)]
    assert all(each.dtype == np.uint8 for each in packed)
    assert sum(each.size for each in packed) == packed_bytes(size, count)
    total = sum(unpack(p, f, size) for p, f in zip(packed, fields(count), strict=True))
    np.testing.assert_array_equal(total, indices)


@pytest.mark.parametrize("count", range(2, 257))
def test_every_index_fits_in_at_most_the_bits_of_a_whole_number(count):
    highest = np.array([count - 1, 0, count // 2], np.uint8)
    total = sum(unpack(pack(highest, f), f, 3) for f in fields(count))
    np.testing.assert_array_equal(total, highest)
    assert np.log2(count) - 1e-9 <= bits_per_index(count) <= np.ceil(np.log2(count))


@pytest.mark.parametrize(
    ("count", "bits"), [(2, 1), (3, 1.6), (4, 2), (6, 2.6), (7, 3), (9, 3.2), (12, 3.6), (16, 4)]
)
def test_counts_between_powers_of_two_take_fewer_bits(count, bits):
    assert bits_per_index(count) == pytest.approx(bits)
