"""Float layers and biases as trained values: their chain rule, from the engine's loss."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import Feeds, Quantized, images, quantize, run, small_graph

from onnxq.engine import Engine
from onnxq.learn.train import Trained, make_parts
from onnxq.learn.weights import FreeValues
from onnxq.options.recipe import Recipe
from onnxq.student.qparams import QParams
from onnxq.train.objective import LOSS, attach_loss, target_name

FLOAT = {"activation_bits": None, "exclude": ("Conv_c", "Gemm")}


class Measured:
    """The loss and its gradients at the trained values, through the engine."""

    def __init__(self, made: Quantized, start: QParams, learns: tuple[str, ...]) -> None:
        x = images(16, seed=3)
        target = run(made.teacher, {"x": x})["y"]
        weight = 1.0 / float(np.square(target).sum())
        self.made = made
        self.trained = Trained(make_parts(set(learns), made.plan, start, {}), made.plan, start)
        model = attach_loss(made.student.model, {"y": weight})
        self.engine = Engine(model, self.trained.names, LOSS, workers=1)
        self.batch = {"x": x, target_name("y"): target}

    def loss(self) -> tuple[float, dict[str, np.ndarray]]:
        feeds = self.made.student.feeds(self.trained.qparams())
        rest = {k: v for k, v in feeds.items() if k not in self.engine.trainable}
        loss, found = self.engine.gradients(feeds, [{**self.batch, **rest}])
        return loss, self.trained.gradients(found)


def check_slopes(measured: Measured, rtol: float) -> None:
    """Compare gradients with central differences, for a few elements of every value."""
    rng = np.random.default_rng(1)
    for value in measured.trained.values.values():
        value += rng.normal(0, 0.1, value.shape).astype(np.float32)
    _, gradients = measured.loss()
    assert gradients.keys() == measured.trained.values.keys()
    step = np.float32(0.05)
    for key, value in measured.trained.values.items():
        largest = float(np.abs(gradients[key]).max())
        for index in list(np.ndindex(value.shape))[::7]:
            kept = value[index].copy()
            losses = []
            for sign in (1, -1):
                value[index] = kept + sign * step
                losses.append(measured.loss()[0])
            value[index] = kept
            slope = (losses[0] - losses[1]) / (2 * step)
            found = gradients[key][index]
            assert found == pytest.approx(slope, rel=rtol, abs=rtol * largest), (key, index)


def test_gradients_of_float_layers_are_those_of_finite_differences():
    recipe = Recipe(learn=("float-layers",), **FLOAT)
    made = quantize(small_graph("residual"), recipe=recipe)
    measured = Measured(made, made.qparams, recipe.learn)
    assert set(measured.trained.values) == {
        "value:v6", "value:wh", "bias:Conv_c", "bias:Gemm_y",
    }  # fmt: skip
    check_slopes(measured, 0.02)


@pytest.mark.parametrize("corrected", [False, True])
def test_gradients_of_biases_are_those_of_finite_differences(corrected):
    recipe = Recipe(learn=("biases",), activation_bits=None)
    samples = Feeds([{"x": images(32, seed=2) + 1}]) if corrected else None
    made = quantize(small_graph("residual"), samples, recipe)
    start = made.corrected if corrected else made.qparams
    measured = Measured(made, start, recipe.learn)
    assert set(measured.trained.values) == {"bias:Conv_a", "bias:Conv_c", "bias:Gemm_y"}
    check_slopes(measured, 0.02)


def test_at_the_start_the_numbers_are_the_same_bits():
    recipe = Recipe(learn=("float-layers", "biases"), **FLOAT)
    made = quantize(small_graph("residual"), recipe=recipe)
    plan, start = made.plan, made.qparams
    parts = make_parts({"float-layers", "biases"}, plan, start, {})
    found = Trained(parts, plan, start).qparams()
    for name, weight in start.weights.items():
        np.testing.assert_array_equal(found.weights[name], weight)
    for name, bias in start.biases.items():
        np.testing.assert_array_equal(found.biases[name], bias)


def test_a_unit_is_a_share_of_the_size_of_its_layer():
    recipe = Recipe(learn=("float-layers",), **FLOAT)
    made = quantize(small_graph("residual"), recipe=recipe)
    specs = list(made.plan.float_layers.values())
    larger = made.qparams.with_weights(
        {s.weight: 8 * made.qparams.weights[s.weight] for s in specs}
    )
    moves = []
    for start in (made.qparams, larger):
        values = FreeValues(start, specs, [])
        for value in values.values.values():
            value += 1
        found = values.qparams(start)
        moves.append([found.weights[s.weight] - start.weights[s.weight] for s in specs])
    for small, large in zip(*moves, strict=True):
        np.testing.assert_allclose(large, 8 * small, rtol=1e-3)


def test_a_bias_on_integer_kernels_is_passed_straight_through():
    recipe = Recipe(learn=("biases",))
    made = quantize(small_graph("residual"), recipe=recipe)
    off = {name: bias + np.float32(0.3) for name, bias in made.qparams.biases.items()}
    measured = Measured(made, made.qparams.with_biases(off), recipe.learn)
    before = measured.loss()[0]
    rate = np.float32(0.02)
    for _ in range(20):
        _, gradients = measured.loss()
        for key, value in measured.trained.values.items():
            value -= rate * np.sign(gradients[key])
    assert measured.loss()[0] < 0.5 * before
