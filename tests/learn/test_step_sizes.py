"""Learned step sizes: chain rule, bounds, and LSQ's factor."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import Quantized, images, quantize, run, small_graph, whole_slopes

from onnxq.engine import Engine
from onnxq.learn.ranges import LOWEST, STEP, WEIGHT_STEP, StepSizes
from onnxq.learn.train import Trained
from onnxq.numerics.quantizers import WEIGHT, per_channel
from onnxq.options.recipe import Recipe
from onnxq.student.qparams import QParams, range_feeds
from onnxq.train.objective import LOSS, attach_loss, target_name

ELEMENTS = {"x": 192, "r": 384, "c": 384, "z": 384, "g": 6}


@cache
def made(symmetric: bool, num_bits: int, granularity: str) -> Quantized:
    recipe = Recipe(
        symmetric=symmetric,
        weight_bits=num_bits,
        activation_bits=num_bits,
        first_last_bits=num_bits,
        granularity=granularity,
        calibration="max",
    )
    return quantize(small_graph("residual"), recipe=recipe)


def trained(quantized: Quantized) -> Trained:
    part = StepSizes(quantized.plan, quantized.qparams, ELEMENTS)
    return Trained([part], quantized.plan, quantized.qparams)


MADE = st.builds(
    made, st.booleans(), st.integers(2, 8), st.sampled_from(["per-channel", "per-tensor"])
)


def linear_loss(quantized: Quantized, now: QParams, slopes, start: QParams) -> float:
    """sum slope * range + sum slope * w~, with rounding as a shift fixed at the start."""
    total = 0.0
    for name, value in range_feeds(quantized.plan.tensors.values(), now).items():
        total += float(slopes[name]) * float(value)
    for spec in quantized.plan.layers.values():
        weight, largest = now.weights[spec.weight].astype(np.float64), 2 ** (spec.num_bits - 1) - 1

        def step(numbers: QParams, spec=spec, rank=weight.ndim, largest=largest):
            thresholds = per_channel(numbers.thresholds[spec.weight], rank, spec.axis)
            return thresholds.astype(np.float64) / largest

        ratio = weight / step(start)
        inside = np.abs(ratio) <= largest + 0.5
        codes = np.clip(np.rint(ratio), -largest, largest)
        fake = np.where(inside, weight + step(now) * (codes - ratio), step(now) * codes)
        total += float((slopes[spec.weight] * fake).sum())
    return total


@settings(max_examples=30)
@given(MADE, st.integers(0, 2**31))
def test_the_chain_rule_is_the_slope_of_the_surrogate(quantized, seed):
    rng = np.random.default_rng(seed)
    steps = trained(quantized)
    for key, value in steps.values.items():
        # Some weights are clipped then, and zero stays in every range.
        value[...] = 0.01 if key.startswith(LOWEST) else rng.uniform(-0.6, 0.2, value.shape)
    steps.project()
    start = steps.qparams()
    inputs = {value.name: value for value in quantized.student.model.graph.inputs}
    slopes = {name: rng.normal(size=tuple(inputs[name].shape or ())) for name in steps.names}
    found = steps.gradients({k: np.asarray(v, np.float32) for k, v in slopes.items()})
    assert found.keys() == steps.values.keys()
    change = 2.0**-7
    for key, value in steps.values.items():
        assert found[key].dtype == np.float32 and found[key].shape == value.shape
        for index in list(np.ndindex(value.shape))[:2]:
            kept, losses = value[index].copy(), []
            for sign in (1, -1):
                value[index] = kept + sign * change
                losses.append(linear_loss(quantized, steps.qparams(), slopes, start))
            value[index] = kept
            slope = (losses[0] - losses[1]) / (2 * change)
            np.testing.assert_allclose(
                found[key][index], slope, rtol=2e-3, atol=2e-3 * (1 + abs(slope)), err_msg=key
            )


@settings(max_examples=30)
@given(MADE, st.integers(0, 2**31), st.floats(0.125, 1e6, width=32))
def test_steps_stay_positive_and_zero_in_range_whatever_the_values(quantized, seed, size):
    steps = trained(quantized)
    rng = np.random.default_rng(seed)
    for value in steps.values.values():
        value[...] = rng.normal(0, size, value.shape)
    steps.project()
    now = steps.qparams()
    for name, (lowest, width) in now.ranges.items():
        assert 0 < width < np.inf
        # The lowest value is held in float32, in units of the first width.
        near = 1e-6 * quantized.qparams.ranges[name][1]
        assert lowest <= near and lowest + width >= -near, name
    for threshold in now.thresholds.values():
        assert np.all((threshold > 0) & np.isfinite(threshold))
    once = {key: value.copy() for key, value in steps.values.items()}
    steps.project()
    for key, value in steps.values.items():
        np.testing.assert_array_equal(value, once[key])


@settings(max_examples=10)
@given(MADE)
def test_at_the_start_the_numbers_are_the_same_bits(quantized):
    start = quantized.qparams
    found = trained(quantized).qparams()
    assert found.ranges == start.ranges
    before, after = (quantized.student.feeds(q) for q in (start, found))
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


@settings(max_examples=10)
@given(MADE)
def test_damping_is_that_of_lsq(quantized):
    part = StepSizes(quantized.plan, quantized.qparams, ELEMENTS)
    for name, spec in quantized.plan.tensors.items():
        expected = 1 / np.sqrt(ELEMENTS[name] * spec.quantizer.largest(spec.num_bits))
        assert part.damping[STEP + name] == pytest.approx(expected)
        assert part.units[STEP + name] == pytest.approx(
            quantized.qparams.ranges[name][1] / spec.quantizer.largest(spec.num_bits)
        )
    for spec in quantized.plan.layers.values():
        weight = quantized.qparams.weights[spec.weight]
        shared = weight.size if spec.axis is None else weight.size / weight.shape[spec.axis]
        expected = 1 / np.sqrt(shared * WEIGHT.largest(spec.num_bits))
        assert part.damping[WEIGHT_STEP + spec.weight] == pytest.approx(expected)


def test_a_tensor_of_unknown_size_counts_as_one_element():
    quantized = made(False, 4, "per-channel")
    part = StepSizes(quantized.plan, quantized.qparams, {})
    assert part.damping[STEP + "r"] == pytest.approx(1 / np.sqrt(15))


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients_follow_the_engines_loss(symmetric, granularity):
    """Where clipping rules the loss, its real differences agree with the gradients."""
    quantized = made(symmetric, 8, granularity)
    x = images(64, seed=8)
    target = run(quantized.teacher, {"x": x})["y"]
    model = attach_loss(quantized.student.model, {"y": 1.0 / float(np.square(target).sum())})
    steps = trained(quantized)
    for key, value in steps.values.items():
        value[...] = 0.25 if key.startswith(LOWEST) else -0.7
    steps.project()
    engine = Engine(model, steps.names, LOSS, workers=1)

    def measure() -> tuple[float, dict[str, np.ndarray]]:
        feeds = quantized.student.feeds(steps.qparams())
        rest = {k: v for k, v in feeds.items() if k not in engine.trainable}
        return engine.gradients(feeds, [{"x": x, target_name("y"): target, **rest}])

    gradients = steps.gradients(measure()[1])
    expected, slopes = whole_slopes(steps.values, gradients, lambda: measure()[0])
    cosine = np.dot(expected, slopes) / np.linalg.norm(expected) / np.linalg.norm(slopes)
    assert cosine > 0.98
    assert 0.85 < np.linalg.norm(slopes) / np.linalg.norm(expected) < 1.15
