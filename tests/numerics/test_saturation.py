from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.numerics.quantizers import may_saturate


@pytest.mark.parametrize(("pair", "expected"), [((64, 64), False), ((64, 65), True)])
def test_adjacent_input_channels_are_added(pair: tuple[int, int], expected: bool) -> None:
    codes = np.zeros((2, 4, 3, 3), np.int8)
    codes[1, 2:4, 1, 1] = pair
    assert may_saturate(codes, 0) is expected


def test_a_depth_wise_convolution_never_saturates() -> None:
    assert not may_saturate(np.full((8, 1, 3, 3), 127, np.int8), 0)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_gemm_adds_along_its_inputs(axis: int) -> None:
    codes = np.zeros((4, 4), np.int8)
    codes[2, 3] = codes[3, 3] = -127
    assert may_saturate(codes, axis) is (axis == 1)


@given(st.integers(1, 9), st.integers(0, 2**16))
def test_seven_bits_never_saturate(inputs: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(-63, 64, (3, inputs)).astype(np.int8)
    assert not may_saturate(codes, 0)
