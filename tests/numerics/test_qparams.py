"""Uniform quantizers: what holds for every tensor, and gradients against differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.numerics.clip_mse import smallest_share, weight_threshold
from onnxq.numerics.quantizers import (
    ACTIVATIONS,
    BIAS_LIMIT,
    SMALLEST_SCALE,
    WEIGHT,
    Range,
    bias_scale,
    dequantize_weight,
    fake_quant_bias,
    fake_quant_weight,
    per_channel,
    quantize_bias,
    quantize_weight,
    smallest_weight_scale,
    weight_scale,
    weight_threshold_gradient,
    weight_threshold_max,
)

BITS = st.integers(2, 8)
LOWEST = st.floats(-100, 0, width=32)
WIDTHS = st.floats(2.0**-10, 200, width=32)
VALUES = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-300, 300, width=32))
WEIGHTS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=4, max_side=5),
    elements=st.floats(-4, 4, width=32, allow_subnormal=False),
)
AXES = st.sampled_from([None, 0, 1])


@given(LOWEST, WIDTHS, BITS)
def test_qparams_are_an_integer_and_a_positive_float32(lowest, width, num_bits):
    quantizer = ACTIVATIONS["asymmetric"]
    scale, zero_point = quantizer.scale_and_zero_point(Range(lowest, width), num_bits)
    assert isinstance(scale, np.float32)
    assert scale > 0
    assert 0 <= zero_point <= quantizer.largest(num_bits)
    if lowest + width >= 0:
        # The rounded range covers the asked one up to half a step.
        assert abs(-float(scale) * zero_point - lowest) <= scale * 0.501
    else:
        assert zero_point == quantizer.largest(num_bits)


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("width", [0.0, -1.0, float("nan")])
def test_a_range_without_width_is_refused(kind, width):
    with pytest.raises(ValueError, match="must be positive"):
        ACTIVATIONS[kind].scale_and_zero_point(Range(-1.0, width), 8)


@given(WEIGHTS, BITS, AXES)
def test_weights_are_within_half_a_scale_of_their_max_threshold(weight, num_bits, axis):
    scale = weight_scale(weight_threshold_max(weight, axis), num_bits)
    error = np.abs(fake_quant_weight(weight, scale, num_bits, axis) - weight)
    bound = per_channel(scale, weight.ndim, axis) * np.float32(0.5001)
    assert np.all(error <= bound)


@given(WEIGHTS, BITS, AXES, st.floats(0.25, 1, width=32))
def test_integer_weights_stay_in_their_symmetric_range(weight, num_bits, axis, alpha):
    scale = weight_scale(weight_threshold_max(weight, axis) * np.float32(alpha), num_bits)
    codes = quantize_weight(weight, scale, num_bits, axis)
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max() <= WEIGHT.largest(num_bits)
    np.testing.assert_array_equal(codes == 0, quantize_weight(-weight, scale, num_bits, axis) == 0)
    once = dequantize_weight(codes, scale, axis)
    np.testing.assert_array_equal(quantize_weight(once, scale, num_bits, axis), codes)


@given(WEIGHTS, AXES)
def test_thresholds_are_one_per_channel_and_never_zero(weight, axis):
    threshold = weight_threshold_max(weight, axis)
    assert threshold.shape == (() if axis is None else (weight.shape[axis],))
    assert threshold.dtype == np.float32
    assert np.all(threshold / 127 >= SMALLEST_SCALE * np.float32(0.999))


def test_a_dead_channel_quantizes_to_zero():
    weight = np.stack([np.zeros((2, 3, 3)), np.ones((2, 3, 3))]).astype(np.float32)
    scale = weight_scale(weight_threshold_max(weight, 0), 8)
    np.testing.assert_array_equal(fake_quant_weight(weight, scale, 8, 0), weight)
    assert not quantize_weight(weight, scale, 8, 0)[0].any()


@given(WEIGHTS, st.sampled_from(["max", "mse", "kl"]), BITS, AXES)
def test_the_starting_threshold_is_within_what_learning_keeps(weight, method, num_bits, axis):
    largest = weight_threshold_max(weight, axis)
    threshold = weight_threshold(weight, method, num_bits, axis)
    assert threshold.shape == largest.shape
    assert np.all(
        (threshold <= largest)
        & (threshold >= largest * np.float32(0.9999 * smallest_share(num_bits)))
    )


@given(WEIGHTS, BITS, AXES)
def test_the_searched_threshold_has_the_least_error_of_the_grid(weight, num_bits, axis):
    def errors(threshold):
        fake = fake_quant_weight(weight, weight_scale(threshold, num_bits), num_bits, axis)
        others = tuple(i for i in range(weight.ndim) if i != axis)
        return np.square(weight - fake).sum(axis=others, dtype=np.float64)

    best = errors(weight_threshold(weight, "mse", num_bits, axis))
    largest = weight_threshold_max(weight, axis)
    for alpha in np.linspace(1.0, smallest_share(num_bits), 6, dtype=np.float32):
        assert np.all(best <= errors(largest * alpha) * (1 + 1e-6))


@pytest.mark.parametrize(("num_bits", "low", "high"), [(2, 1.1, 1.4), (4, 2.0, 2.8), (8, 3.5, 9)])
def test_the_fewer_bits_the_more_is_clipped(num_bits, low, high):
    """Near the best thresholds of a normal density, 1.22 and 2.4 times its deviation, and 4."""
    weight = np.random.default_rng(0).normal(size=(1, 20000)).astype(np.float32)
    weight[0, 0] = 8
    assert low < weight_threshold(weight, "mse", num_bits, None) < high


BIASES = hnp.arrays(np.float32, 4, elements=st.floats(-1e6, 1e6, width=32))
SCALES = hnp.arrays(np.float32, 4, elements=st.floats(2.0**-30, 1, width=32))


@given(BIASES, SCALES, st.floats(2.0**-20, 1, width=32))
def test_a_raised_weight_scale_keeps_the_bias_in_int32(bias, scale, input_scale):
    raised = np.maximum(scale, smallest_weight_scale(bias, np.float32(input_scale)))
    grid = bias_scale(np.float32(input_scale), raised)
    codes = quantize_bias(bias, grid)
    assert codes.dtype == np.int32
    assert np.abs(codes.astype(np.int64)).max() <= BIAS_LIMIT * 1.001
    slack = 4 * np.finfo(np.float32).eps * np.abs(bias)
    assert np.all(np.abs(fake_quant_bias(bias, grid) - bias) <= grid / 2 + slack)


def test_a_bias_far_out_is_clipped_and_does_not_wrap():
    codes = quantize_bias(np.array([1e30, -1e30], np.float32), np.float32(1e-10))
    assert codes.dtype == np.int32
    assert codes[0] == -codes[1] >= BIAS_LIMIT


def surrogate(weight, threshold, base, num_bits, axis):
    """sum g * y, where rounding is a shift that stays while the threshold moves.

    Straight-through rounding is y = s * (clip(w / s) + c), c the rounding error at the
    threshold where the gradient is taken.
    """
    limit = WEIGHT.largest(num_bits)
    start = per_channel(weight_scale(base, num_bits), weight.ndim, axis).astype(np.float64)
    ratio = weight / start
    inside = np.abs(ratio) <= limit + 0.5
    codes = np.clip(np.rint(ratio), -limit, limit)
    shift = np.where(inside, codes - ratio, 0.0)
    scale = np.asarray(threshold, np.float64) / limit
    shape = [1] * weight.ndim
    if axis is not None:
        shape[axis] = -1
    scale = scale.reshape(shape) if axis is not None else scale
    return np.where(inside, weight + scale * shift, scale * codes)


@settings(max_examples=60)
@given(
    st.integers(0, 2**31),
    BITS,
    AXES,
    st.floats(0.5, 1.0, width=32),
    st.floats(0.015625, 100, width=32),
)
def test_the_threshold_gradient_is_the_slope_of_its_surrogate(seed, num_bits, axis, alpha, size):
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(4, 3, 2)) * size).astype(np.float32)
    gradient = rng.normal(size=weight.shape).astype(np.float32)
    threshold = weight_threshold_max(weight, axis) * np.float32(alpha)
    found = weight_threshold_gradient(gradient, weight, threshold, num_bits, axis)
    assert found.shape == threshold.shape
    scale = per_channel(weight_scale(threshold, num_bits), weight.ndim, axis)
    # A weight right at the edge may fall on either side in float32 and float64.
    edge = np.abs(np.abs(weight / scale) - (WEIGHT.largest(num_bits) + 0.5))
    half = np.abs(np.abs(weight / scale) % 1 - 0.5)
    assume(edge.min() > 1e-3 and half.min() > 1e-4)
    step = 1e-3
    for index in np.ndindex(threshold.shape):
        moved = []
        for sign in (1, -1):
            other = np.array(threshold, np.float64)
            other[index] *= 1 + sign * step
            moved.append((gradient * surrogate(weight, other, threshold, num_bits, axis)).sum())
        slope = (moved[0] - moved[1]) / (2 * step * float(threshold[index]))
        np.testing.assert_allclose(found[index], slope, rtol=1e-3, atol=1e-3)


def test_the_surrogate_is_the_quantizer_at_its_own_threshold():
    weight = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    threshold = weight_threshold_max(weight, 0) * np.float32(0.7)
    fake = fake_quant_weight(weight, weight_scale(threshold, 6), 6, 0)
    np.testing.assert_allclose(surrogate(weight, threshold, threshold, 6, 0), fake, atol=1e-6)
