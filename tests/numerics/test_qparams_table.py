"""Quantization parameters and integers as literals, to be checked by eye; ties go to even."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.numerics.quantizers import (
    ACTIVATIONS,
    BIAS,
    CODEBOOK,
    WEIGHT,
    Range,
    bias_scale,
    quantize_bias,
    quantize_weight,
    weight_scale,
    weight_threshold_max,
)

RANGES = [
    # lowest, highest, bits: scale = (highest - lowest) / (2^bits - 1),
    # zero point = round(-lowest / scale)
    (0, 255, 8, 1, 0),
    (-128, 127, 8, 1, 128),
    (-255, 0, 8, 1, 255),
    (-64, 63.5, 8, 0.5, 128),
    (-1, 6.9375, 7, 0.0625, 16),
    (0, 1.875, 4, 0.125, 0),
    (-7.5, 7.5, 4, 1, 8),
    (-6.5, 8.5, 4, 1, 6),
    (-1, 2, 2, 1, 1),
    (-0.25, 0.5, 2, 0.25, 1),
    # 0 lies right of the range: the zero point is the largest value.
    (-510, -255, 8, 1, 255),
]


@pytest.mark.parametrize(("lowest", "highest", "bits", "scale", "zero_point"), RANGES)
def test_parameters_of_an_activation(lowest, highest, bits, scale, zero_point):
    found = ACTIVATIONS["asymmetric"].scale_and_zero_point(Range(lowest, highest - lowest), bits)
    assert found == (scale, zero_point)


KINDS = [
    # kind, width, bits, scale = width / (2^bits - 1) or threshold / (2^(bits - 1) - 1), zero point
    ("positive", 255, 8, 1, 0),
    ("positive", 6, 2, 2, 0),
    ("symmetric", 254, 8, 1, 128),
    ("symmetric", 3.5, 4, 0.25, 8),
    ("symmetric", 4, 2, 2, 2),
]


@pytest.mark.parametrize(("kind", "width", "bits", "scale", "zero_point"), KINDS)
def test_parameters_of_an_activation_whose_kind_fixes_the_zero_point(
    kind, width, bits, scale, zero_point
):
    values = ACTIVATIONS[kind].range(-99, width)
    assert values == (0 if kind == "positive" else -width / 2, width)
    assert ACTIVATIONS[kind].scale_and_zero_point(values, bits) == (scale, zero_point)


@pytest.mark.parametrize(
    ("quantizer", "bits", "largest"),
    [(WEIGHT, 8, 127), (WEIGHT, 2, 1), (CODEBOOK, 7, 63), (BIAS, 32, 2147483647)],
)
def test_integers_of_weights_and_biases(quantizer, bits, largest):
    assert quantizer.largest(bits) == largest


WEIGHTS = [
    # bits, weights, scale = largest magnitude / (2^(bits - 1) - 1), round(weight / scale)
    (8, [-127, -1.5, -0.5, 0, 0.5, 1.5, 2.5], 1, [-127, -2, 0, 0, 0, 2, 2]),
    (8, [63.5, -0.75, 0.3, 10.2], 0.5, [127, -2, 1, 20]),
    (7, [-31.5, 1, 2.2], 0.5, [-63, 2, 4]),
    (4, [-7, 0.5, 1.5, 3.4, 3.6], 1, [-7, 0, 2, 3, 4]),
    (3, [0.75, -0.3, 0.1], 0.25, [3, -1, 0]),
    (2, [-2, 0.9, 1.1, 2], 2, [-1, 0, 1, 1]),
]


@pytest.mark.parametrize(("bits", "weights", "scale", "integers"), WEIGHTS)
def test_weights_of_a_tensor(bits, weights, scale, integers):
    weight = np.array(weights, np.float32)
    found = weight_scale(weight_threshold_max(weight, None), bits)
    assert found == scale
    assert quantize_weight(weight, found, bits, None).tolist() == integers


def test_weights_of_each_channel():
    weight = np.array([[0.3, -127], [100, -254]], np.float32)
    rows = weight_scale(weight_threshold_max(weight, 0), 8)
    assert rows.tolist() == [1, 2]
    assert quantize_weight(weight, rows, 8, 0).tolist() == [[0, -127], [50, -127]]
    columns = weight_scale(weight_threshold_max(weight.T, 1), 8)
    assert quantize_weight(weight.T, columns, 8, 1).tolist() == [[0, 50], [-127, -127]]


def test_weights_beyond_the_threshold_saturate():
    weight = np.array([-9, 7.4, 7.6, 9], np.float32)
    assert quantize_weight(weight, np.float32(1), 4, None).tolist() == [-7, 7, 7, 7]


def test_biases():
    scale = bias_scale(np.float32(0.5), np.array([0.25, 2, 2], np.float32))
    assert scale.tolist() == [0.125, 1, 1]
    assert quantize_bias(np.array([1, -3.5, 4.5], np.float32), scale).tolist() == [8, -4, 4]
