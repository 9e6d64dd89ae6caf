"""FAT's trained values: bounds, meaning, chain rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import Quantized, images, quantize, run, small_graph, whole_slopes

from onnxq.engine import Engine
from onnxq.learn.ranges import (
    SHIFT,
    SHIFT_MAX,
    SHIFT_MIN,
    THRESHOLD,
    WIDTH,
    ThresholdScales,
)
from onnxq.learn.train import Trained
from onnxq.numerics.clip_mse import smallest_share
from onnxq.numerics.corrections import weight_error_shift
from onnxq.numerics.quantizers import Range, weight_threshold_max
from onnxq.options.recipe import Recipe
from onnxq.student.qparams import bias_name, range_feeds
from onnxq.train.objective import LOSS, attach_loss, target_name

_made: dict[bool, Quantized] = {}


def made(symmetric: bool) -> Quantized:
    if symmetric not in _made:
        _made[symmetric] = quantize(small_graph("residual"), recipe=Recipe(symmetric=symmetric))
    return _made[symmetric]


def ranges_between(quantized: Quantized, ends: dict[str, tuple[float, float]]) -> dict[str, Range]:
    """By tensor the range of its kind that holds both ends."""
    return {
        name: spec.quantizer.range(
            ends[name][0],
            2 * max(-ends[name][0], ends[name][1])
            if spec.kind == "symmetric"
            else ends[name][1] - ends[name][0],
        )
        for name, spec in quantized.plan.tensors.items()
    }


def wide(quantized: Quantized) -> dict[str, tuple[float, float]]:
    """Ends that no tensor of these images leaves, uneven where there is a sign."""
    return {n: (-3.0 if s.signed else 0.0, 5.0) for n, s in quantized.plan.tensors.items()}


def scales_of(quantized: Quantized) -> Trained:
    return trained(quantized, wide(quantized))


def trained(quantized: Quantized, seen: dict[str, tuple[float, float]]) -> Trained:
    full = ranges_between(quantized, seen)
    scales = ThresholdScales(quantized.plan, quantized.qparams, full)
    return Trained([scales], quantized.plan, quantized.qparams)


@settings(max_examples=40)
@given(st.booleans(), st.integers(0, 2**31), st.floats(0.015625, 4, width=32))
def test_projection_keeps_every_value_in_its_bounds(symmetric, seed, size):
    quantized = made(symmetric)
    scales = scales_of(quantized)
    rng = np.random.default_rng(seed)
    for value in scales.values.values():
        value[...] = rng.normal(0.5, size, value.shape)
    scales.project()
    once = {key: value.copy() for key, value in scales.values.items()}
    for key, value in scales.values.items():
        assert value.dtype == np.float32
        if key.startswith(SHIFT):
            assert SHIFT_MIN <= value <= SHIFT_MAX
        else:
            assert np.all((value >= smallest_share(8)) & (value <= 1))
    for name, (lowest, width) in scales.qparams().ranges.items():
        assert lowest <= 1e-6, name
        assert lowest + width >= -1e-6, name
    scales.project()
    for key, value in scales.values.items():
        np.testing.assert_array_equal(value, once[key])


def test_zero_stays_in_the_range_of_a_tensor_without_positive_values():
    quantized = made(False)
    scales = trained(quantized, {**wide(quantized), "c": (-4.0, 0.0)})
    scales.values[WIDTH + "c"][...] = 0.5
    scales.values[SHIFT + "c"][...] = -0.2
    scales.project()
    lowest, width = scales.qparams().ranges["c"]
    assert lowest <= 0 <= lowest + width + 1e-6


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_start_is_kept_where_it_is_within_the_bounds(symmetric):
    quantized = made(symmetric)
    seen = {}
    for name, spec in quantized.plan.tensors.items():
        lowest, width = quantized.qparams.ranges[name]
        # What was seen is a little wider than what the calibration method took.
        seen[name] = (lowest * 1.25 if spec.signed else 0.0, (lowest + width) * 1.25)
    scales = trained(quantized, seen)
    found = scales.qparams()
    for name, values in quantized.qparams.ranges.items():
        np.testing.assert_allclose(found.ranges[name], values, rtol=1e-5, atol=1e-6)
    for name, threshold in quantized.qparams.thresholds.items():
        np.testing.assert_allclose(found.thresholds[name], threshold, rtol=1e-5)


def test_nothing_but_ranges_and_thresholds_changes():
    quantized = made(False)
    before = {key: value.copy() for key, value in quantized.qparams.thresholds.items()}
    scales = scales_of(quantized)
    for value in scales.values.values():
        value[...] = 0.5
    found = scales.qparams()
    assert found.weights is quantized.qparams.weights
    assert found.biases is quantized.qparams.biases
    for key, value in quantized.qparams.thresholds.items():
        np.testing.assert_array_equal(value, before[key])


def linear_loss(quantized: Quantized, scales: Trained, slopes, start):
    """sum slope * range + sum slope * w~, with rounding as a shift fixed at the start."""
    numbers, total = scales.qparams(), 0.0
    for name, value in range_feeds(quantized.plan.tensors.values(), numbers).items():
        total += float(slopes[name]) * float(value)
    for spec in quantized.plan.layers.values():
        axis = spec.axis
        assert axis is not None
        shape = [1] * numbers.weights[spec.weight].ndim
        shape[axis] = -1
        begin = start.thresholds[spec.weight].astype(np.float64).reshape(shape) / 127
        now = numbers.thresholds[spec.weight].astype(np.float64).reshape(shape) / 127
        ratio = numbers.weights[spec.weight] / begin
        inside = np.abs(ratio) <= 127.5
        codes = np.clip(np.rint(ratio), -127, 127)
        fake = np.where(inside, numbers.weights[spec.weight] + now * (codes - ratio), now * codes)
        total += float((slopes[spec.weight] * fake).sum())
        if spec.name in numbers.means:
            shift = weight_error_shift(
                numbers.weights[spec.weight].astype(np.float64),
                fake,
                numbers.means[spec.name],
                spec.op_type,
                spec.channel_axis,
            )
            total -= float((slopes[bias_name(spec)] * shift).sum())
    return total


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_chain_rule_is_the_slope_of_the_surrogate(symmetric, corrected):
    quantized = made(symmetric)
    if corrected:
        quantized = replace(quantized, qparams=quantized.corrected)
    scales = scales_of(quantized)
    rng = np.random.default_rng(4)
    for key, value in scales.values.items():
        value[...] = rng.uniform(0.0, 0.1) if key.startswith(SHIFT) else 0.75
    start = scales.qparams()
    inputs = {value.name: value for value in quantized.student.model.graph.inputs}
    slopes = {name: rng.normal(size=tuple(inputs[name].shape or ())) for name in scales.names}
    found = scales.gradients({k: np.asarray(v, np.float32) for k, v in slopes.items()})
    assert found.keys() == scales.values.keys()
    step = 2.0**-7
    for key, value in scales.values.items():
        for index in list(np.ndindex(value.shape))[:3]:
            losses = []
            for sign in (1, -1):
                kept = value[index].copy()
                value[index] += sign * step
                losses.append(linear_loss(quantized, scales, slopes, start))
                value[index] = kept
            slope = (losses[0] - losses[1]) / (2 * step)
            np.testing.assert_allclose(
                found[key][index], slope, rtol=2e-3, atol=2e-3 * (1 + abs(slope)), err_msg=key
            )


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients_follow_the_engines_loss(symmetric):
    """Where clipping rules the loss, its real differences agree with the gradients."""
    quantized = made(symmetric)
    x = images(64, seed=8)
    target = run(quantized.teacher, {"x": x})["y"]
    weight = 1.0 / float(np.square(target).sum())
    model = attach_loss(quantized.student.model, {"y": weight})
    pre = {"c": (-4.0, 4.0), "x": (-4.0, 4.0), "r": (0.0, 5.0), "z": (0.0, 6.0), "g": (0.0, 3.0)}
    scales = trained(quantized, pre)
    for key, value in scales.values.items():
        value[...] = 0.25 if key.startswith(SHIFT) else 0.5
    scales.project()
    engine = Engine(model, scales.names, LOSS, workers=1)

    def run_engine() -> tuple[float, dict[str, np.ndarray]]:
        feeds = quantized.student.feeds(scales.qparams())
        batch = {"x": x, target_name("y"): target}
        rest = {k: v for k, v in feeds.items() if k not in engine.trainable}
        return engine.gradients(feeds, [{**batch, **rest}])

    _, found = run_engine()
    gradients = scales.gradients(found)
    expected, slopes = whole_slopes(scales.values, gradients, lambda: run_engine()[0])
    cosine = np.dot(expected, slopes) / np.linalg.norm(expected) / np.linalg.norm(slopes)
    assert cosine > 0.98
    ratio = np.linalg.norm(slopes) / np.linalg.norm(expected)
    assert 0.85 < ratio < 1.15


def test_alpha_of_a_weight_is_a_share_of_its_largest_value():
    quantized = made(False)
    scales = scales_of(quantized)
    scales.values[THRESHOLD + "v6"][...] = 0.5
    largest = weight_threshold_max(quantized.qparams.weights["v6"], 0)
    np.testing.assert_array_equal(scales.qparams().thresholds["v6"], largest / 2)
