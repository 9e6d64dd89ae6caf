from __future__ import annotations

import numpy as np
import pytest

from onnxq.train.optimizer import SGD, Adam, CosineRestarts


def quadratic(parameters):
    """Gradient of sum (p - 3)^2."""
    return {name: 2 * (value - 3) for name, value in parameters.items()}


@pytest.fixture
def parameters():
    return {"a": np.array(0.5, np.float32), "b": np.array([1.0, -2.0], np.float32)}


@pytest.mark.parametrize("optimizer", [Adam(lr=0.1), SGD(lr=0.02)], ids=["adam", "sgd"])
def test_finds_the_minimum_in_place(optimizer, parameters):
    views = dict(parameters)
    for _ in range(300):
        optimizer.step(parameters, quadratic(parameters))
    for name, value in views.items():
        assert value is parameters[name]
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, 3, atol=1e-2)


def test_adams_first_step_has_the_size_of_the_rate(parameters):
    before = parameters["b"].copy()
    Adam(lr=0.01).step(parameters, {"b": np.array([5.0, -0.2], np.float32)})
    np.testing.assert_allclose(before - parameters["b"], [0.01, -0.01], rtol=1e-4)


def test_adam_against_the_equations(parameters):
    adam = Adam(lr=0.05)
    gradients = np.random.default_rng(0).normal(size=(5, 2))
    expected, m, v = parameters["b"].astype(np.float64), np.zeros(2), np.zeros(2)
    for t, g in enumerate(gradients, start=1):
        adam.step(parameters, {"b": g.astype(np.float32)})
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        expected -= 0.05 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(parameters["b"], expected, rtol=1e-5)


@pytest.mark.parametrize("make", [Adam, SGD])
def test_goes_on_from_a_saved_state(make, parameters):
    other = {name: value.copy() for name, value in parameters.items()}
    first, second = make(lr=0.1), make(lr=0.1)
    for _ in range(3):
        first.step(parameters, quadratic(parameters))
    for _ in range(2):
        second.step(other, quadratic(other))
    third = make(lr=0.1)
    third.load_state(second.state())
    third.step(other, quadratic(other))
    for name in parameters:
        np.testing.assert_array_equal(parameters[name], other[name])


def test_reset_forgets(parameters):
    adam = Adam()
    adam.step(parameters, quadratic(parameters))
    adam.reset()
    assert adam.state().keys() == {"steps"}
    assert adam.state()["steps"] == 0


def test_cosine_restarts():
    schedule = CosineRestarts(0.1, period=10)
    assert schedule.lr(0) == schedule.lr(10) == pytest.approx(0.1)
    assert schedule.lr(5) == pytest.approx(0.05)
    assert [step for step in range(31) if schedule.restarts_at(step)] == [10, 20, 30]


def test_a_period_without_steps_is_refused():
    with pytest.raises(ValueError, match="period must be at least 1, found 0"):
        CosineRestarts(0.1, period=0)
