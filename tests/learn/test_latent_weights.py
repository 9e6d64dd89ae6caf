"""Weights trained behind their codes: the straight-through gradient, and what is exported."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import Feeds, Quantized, images, quantize, run, serialised, small_graph

from onnxq.engine import Engine
from onnxq.export.compact import export
from onnxq.learn.train import Trained, make_parts
from onnxq.learn.weights import VALUE, LatentWeights
from onnxq.numerics.quantizers import WEIGHT, per_channel
from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.plan import planner
from onnxq.student.qparams import QParams
from onnxq.train.objective import LOSS, attach_loss, target_name

SPREAD = {True: 10.0, False: 0.2}
"""Of weights, in steps, and of biases, in their root mean square."""


def clipped(num_bits: int, granularity: str) -> tuple[Quantized, QParams]:
    """A graph whose thresholds clip some weights."""
    recipe = Recipe(weight_bits=num_bits, first_last_bits=num_bits, granularity=granularity)
    made = quantize(small_graph("residual"), recipe=recipe)
    thresholds = {name: value / 2 for name, value in made.qparams.thresholds.items()}
    return made, made.qparams.with_thresholds(thresholds)


@settings(max_examples=15)
@given(st.integers(2, 8), st.sampled_from(["per-channel", "per-tensor"]), st.integers(0, 2**31))
def test_the_gradient_passes_straight_through_where_nothing_is_clipped(num_bits, granularity, seed):
    made, start = clipped(num_bits, granularity)
    layers = list(made.plan.layers.values())
    part = LatentWeights(layers, start)
    rng = np.random.default_rng(seed)
    for value in part.values.values():
        value += rng.normal(0, 0.5, value.shape).astype(np.float32)
    now = part.qparams(start)
    slopes = {s.weight: rng.normal(size=start.weights[s.weight].shape) for s in layers}
    found = part.gradients({k: v.astype(np.float32) for k, v in slopes.items()}, now)
    assert found.keys() == part.values.keys()
    for spec in layers:
        weight, largest = now.weights[spec.weight], WEIGHT.largest(spec.num_bits)
        step = per_channel(start.thresholds[spec.weight], weight.ndim, spec.axis) / largest
        outside = np.abs(np.rint(weight / step)) > largest
        assert outside.any() and not outside.all()
        expected = np.where(outside, 0, slopes[spec.weight] * step)
        np.testing.assert_allclose(found[VALUE + spec.weight], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
def test_a_value_counts_steps_of_its_channel(granularity):
    made, start = clipped(4, granularity)
    part = LatentWeights(list(made.plan.layers.values()), start)
    before = made.student.feeds(start)
    for value in part.values.values():
        value -= 1
    after = made.student.feeds(part.qparams(start))
    for spec in made.plan.layers.values():
        threshold, weight = start.thresholds[spec.weight], start.weights[spec.weight]
        step = per_channel(threshold, weight.ndim, spec.axis) / WEIGHT.largest(spec.num_bits)
        moved = part.qparams(start).weights[spec.weight] - weight
        np.testing.assert_allclose(moved, np.broadcast_to(-step, weight.shape), rtol=1e-4)
        # One step takes a weight to the next code.
        inside = np.abs(weight / step) < WEIGHT.largest(spec.num_bits) - 1
        assert inside.any()
        codes = [np.rint(each[spec.weight] / step) for each in (before, after)]
        np.testing.assert_array_equal((codes[1] - codes[0])[inside], -1)


def test_layers_with_a_codebook_are_left_out(monkeypatch):
    monkeypatch.setattr(planner, "codebook_refusal", lambda *args, **more: "")
    recipe = Recipe(layers=(LayerOverride("Conv_c", codebook=4),))
    made = quantize(small_graph("residual"), recipe=recipe)
    parts = make_parts({"weights"}, made.plan, made.qparams, {})
    assert set(parts[0].values) == {"value:wx", "value:wh"}
    assert parts[0].parameter_names() == ["wx", "wh"]
    # Biases are learned with the weights, at a rate of their own.
    assert set(parts[1].values) == {"bias:Conv_a", "bias:Conv_c", "bias:Gemm_y"}
    assert [part.group for part in parts] == ["weights", "biases"]


def test_gradients_follow_the_engines_loss():
    """With 8 bits the steps are small, and differences see through them."""
    made = quantize(small_graph("residual"), recipe=Recipe(activation_bits=None, calibration="max"))
    x = images(16, seed=3)
    target = run(made.teacher, {"x": x})["y"]
    model = attach_loss(made.student.model, {"y": 1.0 / float(np.square(target).sum())})
    trained = Trained(make_parts({"weights"}, made.plan, made.qparams, {}), made.plan, made.qparams)
    rng = np.random.default_rng(1)
    for value in trained.values.values():
        value += rng.normal(0, SPREAD[value.ndim > 1], value.shape).astype(np.float32)
    engine = Engine(model, trained.names, LOSS, workers=1)

    def measure() -> tuple[float, dict[str, np.ndarray]]:
        feeds = made.student.feeds(trained.qparams())
        rest = {k: v for k, v in feeds.items() if k not in engine.trainable}
        return engine.gradients(feeds, [{"x": x, target_name("y"): target, **rest}])

    gradients = trained.gradients(measure()[1])
    for key, value in trained.values.items():
        direction = rng.normal(size=value.shape).astype(np.float32)
        # A weight at the threshold is clipped on one side of a difference.
        direction[gradients[key] == 0] = 0
        direction += np.sign(gradients[key])
        kept, losses, change = value.copy(), [], SPREAD[value.ndim > 1] / 4
        for sign in (1, -1):
            value[...] = kept + np.float32(sign * change) * direction
            losses.append(measure()[0])
        value[...] = kept
        slope = (losses[0] - losses[1]) / (2 * change)
        assert float((gradients[key] * direction).sum()) == pytest.approx(slope, rel=0.1), key


@pytest.mark.parametrize("num_bits", [2, 4, 8])
def test_weights_on_their_codes_are_exported_as_the_same_bytes(num_bits):
    made, start = clipped(num_bits, "per-channel")
    plan, student = made.plan, made.student
    found = student.with_weights_on_grid(start)
    before, after = (serialised(export(made.student, q)) for q in (start, found))
    assert before == after
    feeds = student.feeds(found)
    for spec in plan.layers.values():
        np.testing.assert_array_equal(found.weights[spec.weight], feeds[spec.weight])
        assert not np.array_equal(found.weights[spec.weight], start.weights[spec.weight])
    again = student.with_weights_on_grid(found)
    for name, weight in found.weights.items():
        np.testing.assert_array_equal(again.weights[name], weight)


@pytest.mark.parametrize("activation_bits", [4, 8, None])
def test_kept_corrections_give_the_student_the_same_bits(activation_bits):
    recipe = Recipe(weight_bits=4, activation_bits=activation_bits)
    samples = Feeds([{"x": images(32, seed=2) + np.float32(1)}])
    made = quantize(small_graph("residual"), samples, recipe)
    start = made.corrected
    found = made.student.with_corrections_kept(start)
    assert start.means and not found.means
    assert any(not np.array_equal(found.biases[n], b) for n, b in start.biases.items())
    before, after = (made.student.feeds(q) for q in (start, found))
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
