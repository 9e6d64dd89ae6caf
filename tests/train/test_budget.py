"""Learning rates: one for each kind of value, and real ones for plain gradient descent."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from small_graphs import Quantized, quantize, small_graph

from onnxq.learn.ranges import LOWEST, STEP, WEIGHT_STEP, StepSizes
from onnxq.learn.train import Trained, make_parts
from onnxq.learn.weights import BIAS, VALUE
from onnxq.options.recipe import Recipe
from onnxq.options.table import RATES
from onnxq.train.budget import (
    ADAM_RATES,
    DEFAULT_LONG_STEPS,
    EPOCHS,
    LONG_EPOCHS,
    LONG_STEPS,
    SGD_RATE,
    Budget,
    recipe_budget,
)
from onnxq.train.optimizer import SGD

ELEMENTS = {"x": 192, "r": 384, "c": 384, "z": 384, "g": 6}


@cache
def made(symmetric: bool = False) -> Quantized:
    recipe = Recipe(symmetric=symmetric, weight_bits=4, activation_bits=4, calibration="max")
    return quantize(small_graph("residual"), recipe=recipe)


def trained(quantized: Quantized) -> Trained:
    plan, start = quantized.plan, quantized.qparams
    return Trained(make_parts({"weights", "steps"}, plan, start, {}, ELEMENTS), plan, start)


def slopes_of(quantized: Quantized, values: Trained) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    inputs = {value.name: value for value in quantized.student.model.graph.inputs}
    return {
        name: np.asarray(rng.normal(size=tuple(inputs[name].shape or ())), np.float32)
        for name in values.names
    }


def stepped(quantized: Quantized, budget: Budget) -> tuple[Trained, dict[str, np.ndarray]]:
    """The values after one step, and the slopes that it took."""
    values = trained(quantized)
    slopes = slopes_of(quantized, values)
    budget.make_optimizer(values).step(values.values, values.gradients(slopes))
    return values, slopes


def test_gradient_descent_moves_weights_and_biases_by_the_rate_times_the_gradient():
    quantized = made()
    found, slopes = stepped(quantized, Budget(lr=0.01, optimizer="sgd"))
    before, after = quantized.qparams, found.qparams()
    for weight, start in before.weights.items():
        moved = after.weights[weight] - start
        # No weight is clipped at its own maximum.
        np.testing.assert_allclose(moved, -0.01 * slopes[weight], rtol=1e-4, atol=1e-6)
    for layer, start in before.biases.items():
        moved = after.biases[layer] - start
        np.testing.assert_allclose(moved, -0.01 * slopes[f"{layer}.bias"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradient_descent_moves_steps_by_lsqs_share_of_the_gradient(symmetric):
    """d step = lr g dL/dstep, g = 1 / sqrt(N Q), to first order in lr."""
    quantized = made(symmetric)
    rate = 1e-5
    found, slopes = stepped(quantized, Budget(lr=rate, optimizer="sgd"))
    plan, start = quantized.plan, quantized.qparams
    for name, spec in plan.tensors.items():
        largest = 2**spec.num_bits - 1
        step = start.ranges[name][1] / largest
        # limit = step * largest, or half of it where it is a symmetric threshold.
        name_of = "threshold" if spec.kind == "symmetric" else "width"
        share = largest / 2 if spec.kind == "symmetric" else largest
        gradient = float(slopes[f"{name}.{name_of}"]) * share
        expected = -rate * gradient / np.sqrt(ELEMENTS[name] * largest) / step
        assert float(found.values[STEP + name]) == pytest.approx(expected, rel=1e-3)
        if spec.kind == "asymmetric":
            # The lowest value is that many steps from zero, and moves as the highest one does.
            moved = float(found.values[LOWEST + name]) * start.ranges[name][1]
            gradient = float(slopes[f"{name}.lowest"]) * largest**2
            expected = -rate * gradient / np.sqrt(ELEMENTS[name] * largest)
            assert moved == pytest.approx(expected, rel=1e-3)
    part = StepSizes(plan, start, ELEMENTS)
    gradients = part.gradients(slopes, start)
    for spec in plan.layers.values():
        key = WEIGHT_STEP + spec.weight
        largest, weight = 2 ** (spec.num_bits - 1) - 1, start.weights[spec.weight]
        step = start.thresholds[spec.weight] / largest
        # dL/dstep = (dL/dv) / step
        gradient = gradients[key] / step
        g = 1 / np.sqrt(weight.size / weight.shape[0] * largest)
        np.testing.assert_allclose(found.values[key], -rate * g * gradient / step, rtol=1e-3)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_each_kind_has_a_rate_of_its_own(optimizer):
    values = trained(made())
    plain = Budget(optimizer=optimizer).make_optimizer(values)
    budget = Budget(optimizer=optimizer, lr={"weights": 0.5 * Budget().rate("weights")})
    if optimizer == "sgd":
        budget = Budget(optimizer=optimizer, lr={"weights": 0.5 * SGD_RATE})
    other = budget.make_optimizer(values)
    for key, group in values.groups.items():
        expected = 0.5 if group == "weights" else 1.0
        np.testing.assert_allclose(other.rates[key], expected * np.asarray(plain.rates[key]))
    for start, group in ((VALUE, "weights"), (BIAS, "biases")):
        assert {values.groups[key] for key in values.values if key.startswith(start)} == {group}


def test_one_rate_serves_all_and_every_kind_has_a_default():
    assert set(ADAM_RATES) == set(RATES)
    for kind in RATES:
        assert Budget(lr=0.3).rate(kind) == Budget(lr={kind: 0.3}).rate(kind) == 0.3
        assert Budget().rate(kind) == ADAM_RATES[kind]
        assert Budget(optimizer="sgd").rate(kind) == SGD_RATE


def test_momentum_gathers_and_a_rate_may_be_an_array():
    parameters = {"a": np.zeros(2, np.float32)}
    sgd = SGD(1.0, rates={"a": np.array([1.0, 0.1], np.float32)})
    for _ in range(2):
        sgd.step(parameters, {"a": np.ones(2, np.float32)})
    np.testing.assert_allclose(parameters["a"], [-2.9, -0.29], rtol=1e-6)


@pytest.mark.parametrize(
    ("groups", "steps", "passes"),
    [
        ({"thresholds"}, 1, EPOCHS),
        ({"weights"}, 10, LONG_STEPS // 10),
        ({"steps"}, 7, -(-LONG_STEPS // 7)),
        ({"weights", "steps"}, LONG_STEPS, LONG_EPOCHS),
    ],
)
def test_weights_and_steps_take_a_number_of_steps_however_few_the_samples(groups, steps, passes):
    assert Budget().passes(frozenset(groups), steps) == passes
    assert Budget(epochs=3).passes(frozenset(groups), steps) == 3


def test_the_effort_sets_steps_and_whether_training_stops_early():
    short, long = frozenset({"thresholds"}), frozenset({"steps", "weights"})
    usual = Budget(effort="default")
    assert usual.stops_early(short) and not usual.stops_early(long)
    assert usual.passes(long, 10) == DEFAULT_LONG_STEPS // 10 < Budget().passes(long, 10)
    assert not Budget(effort="max").stops_early(short)
    # What the epochs are was said.
    assert not Budget(effort="default", epochs=3).stops_early(short)
    assert Budget(effort="default", epochs=3).passes(long, 10) == 3


def test_a_batch_has_32_samples_however_many_fit_into_a_run():
    for size in (1, 2, 8, 16):
        budget = recipe_budget(Recipe(), size, 1.0)
        assert budget.shards * budget.shard_size == 32
    assert recipe_budget(Recipe(batch_size=4), 4, 1.0).shards == 2
