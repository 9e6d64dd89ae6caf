"""Weights on their grid: a step that is learned takes their codes along."""

from __future__ import annotations

from functools import cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import Quantized, quantize, small_graph

from onnxq.learn.ranges import WEIGHT_STEP, StepSizes
from onnxq.learn.train import Trained
from onnxq.learn.weights import VALUE, LatentWeights
from onnxq.numerics.quantizers import WEIGHT, per_channel, quantize_weight, weight_scale
from onnxq.options.recipe import Recipe
from onnxq.plan.spec import LayerSpec
from onnxq.student.qparams import QParams, is_on_grid

CASES = st.tuples(st.integers(2, 8), st.sampled_from(["per-channel", "per-tensor"]))


@cache
def rounded(num_bits: int, granularity: str) -> tuple[Quantized, QParams]:
    """A graph whose weights are what their codes stand for, as rounding leaves them."""
    recipe = Recipe(weight_bits=num_bits, first_last_bits=num_bits, granularity=granularity)
    made = quantize(small_graph("residual"), recipe=recipe)
    start = made.student.with_weights_on_grid(made.qparams)
    assert all(is_on_grid(spec, start) for spec in made.plan.layers.values())
    return made, start


def codes(spec: LayerSpec, now: QParams) -> np.ndarray:
    scale = weight_scale(now.thresholds[spec.weight], spec.num_bits)
    return quantize_weight(now.weights[spec.weight], scale, spec.num_bits, spec.axis)


def step(spec: LayerSpec, now: QParams) -> np.ndarray:
    rank = now.weights[spec.weight].ndim
    thresholds = per_channel(now.thresholds[spec.weight], rank, spec.axis).astype(np.float64)
    return thresholds / WEIGHT.largest(spec.num_bits)


def trained(made: Quantized, start: QParams) -> Trained:
    layers = list(made.plan.layers.values())
    parts = [StepSizes(made.plan, start, {}), LatentWeights(layers, start)]
    return Trained(parts, made.plan, start)


@settings(max_examples=20)
@given(CASES, st.integers(0, 2**31))
def test_steps_move_and_codes_stay(case, seed):
    made, start = rounded(*case)
    rng = np.random.default_rng(seed)
    for parts in (
        trained(made, start),
        Trained([StepSizes(made.plan, start, {})], made.plan, start),
    ):
        for key, value in parts.values.items():
            if key.startswith(WEIGHT_STEP):
                value[...] = rng.uniform(-0.7, 0.7, value.shape)
        now = parts.qparams()
        for spec in made.plan.layers.values():
            np.testing.assert_array_equal(codes(spec, now), codes(spec, start))
            assert not np.array_equal(now.thresholds[spec.weight], start.thresholds[spec.weight])


@settings(max_examples=20)
@given(CASES, st.integers(0, 2**31))
def test_gradients_are_the_slopes_of_codes_that_stay(case, seed):
    made, start = rounded(*case)
    parts, rng = trained(made, start), np.random.default_rng(seed)
    layers = list(made.plan.layers.values())
    for spec in layers:
        parts.values[WEIGHT_STEP + spec.weight][...] = rng.uniform(-0.3, 0.3)
        value = parts.values[VALUE + spec.weight]
        value[...] = rng.normal(0, 0.4, value.shape)
    first = parts.qparams()
    shifts = {s.weight: codes(s, first) - first.weights[s.weight] / step(s, first) for s in layers}
    slopes = {s.weight: rng.normal(size=shifts[s.weight].shape) for s in layers}

    def loss() -> float:
        """sum slope * step * (latent code + the rounding of the start), clipped codes fixed."""
        now, total = parts.qparams(), 0.0
        for spec in layers:
            limit = WEIGHT.largest(spec.num_bits)
            latent = now.weights[spec.weight] / step(spec, now)
            clipped = np.abs(first.weights[spec.weight] / step(spec, first)) > limit + 0.5
            code = np.where(clipped, codes(spec, first), latent + shifts[spec.weight])
            total += float((slopes[spec.weight] * step(spec, now) * code).sum())
        return total

    found = {name: np.zeros_like(value) for name, value in _inputs(made).items()}
    found |= {name: slope.astype(np.float32) for name, slope in slopes.items()}
    gradients = parts.gradients(found)
    change = 2.0**-7
    for spec in layers:
        for key in (WEIGHT_STEP + spec.weight, VALUE + spec.weight):
            value = parts.values[key]
            for index in list(np.ndindex(value.shape))[:3]:
                kept, losses = value[index].copy(), []
                for sign in (1, -1):
                    value[index] = kept + sign * change
                    losses.append(loss())
                value[index] = kept
                slope = (losses[0] - losses[1]) / (2 * change)
                np.testing.assert_allclose(
                    gradients[key][index], slope, rtol=5e-3, atol=5e-3 * (1 + abs(slope))
                )


def _inputs(made: Quantized) -> dict[str, np.ndarray]:
    graph = made.student.model.graph
    shapes = {str(v.name): tuple(v.shape or ()) for v in graph.inputs if v.name != "x"}
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
