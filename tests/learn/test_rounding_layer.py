"""One layer: moments of its rows, its bias, and the error that it says it has."""

from __future__ import annotations

import platform

import numpy as np
import pytest

from onnxq.learn.gptq.layer import FittedLayer, Moments, fit_layer, transposed
from onnxq.numerics.gptq import Geometry
from onnxq.plan.spec import LayerSpec

SPEC = LayerSpec("c", "Gemm", "w", "b", "x", "y", 0, 0, 3, "integer", "", 20)
GEOMETRY = Geometry("Gemm", (4, 5), 0)
ALL = 10**6


@pytest.fixture
def data() -> tuple[np.ndarray, ...]:
    """Correlated inputs with a mean, a weight, and outputs that are not quite its own."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5)) @ rng.normal(size=(5, 5)) + 2
    weight = rng.normal(size=(4, 5))
    t = x @ weight.T + 3 + 0.05 * rng.normal(size=(400, 4))
    return tuple(array.astype(np.float32) for array in (x, weight, t))


def moments_of(x: np.ndarray, t: np.ndarray, rows: int = ALL) -> Moments:
    moments = Moments(GEOMETRY, [0, 0], rows)
    for i in range(0, len(x), 50):
        moments.add(x[i : i + 50], t[i : i + 50])
    return moments


def fit(x: np.ndarray, weight: np.ndarray, t: np.ndarray, bias: np.ndarray | None) -> FittedLayer:
    scale = np.abs(weight).max(axis=1) / np.float32(3)
    return fit_layer(SPEC, moments_of(x, t), ALL, weight, scale, bias)


def test_moments_are_covariances_or_second_moments(data):
    x, _, t = data
    moments = moments_of(x, t)
    hessian, cross = moments.second(None)
    both = np.cov(np.hstack([x, t]).T, bias=True)
    np.testing.assert_allclose(hessian[0], both[:5, :5], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cross[0], both[5:, :5], rtol=1e-4, atol=1e-4)
    bias = np.arange(4.0)
    hessian, cross = moments.second(bias[None])
    np.testing.assert_allclose(hessian[0], x.T @ x / len(x), rtol=1e-5)
    np.testing.assert_allclose(cross[0], (t - bias).T @ x / len(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("machine", "shared"), [("x86_64", True), ("aarch64", False)])
def test_on_arm_a_matrix_meets_no_view_of_itself(machine, shared, monkeypatch):
    x = np.arange(24, dtype=np.float32).reshape(1, 4, 6)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    rows = transposed(x)
    np.testing.assert_array_equal(rows, np.swapaxes(x, 1, 2))
    assert np.shares_memory(rows, x) is shared


def test_inputs_that_hardly_vary_about_a_large_mean(data):
    x, weight, t = data
    hessian, _ = moments_of((x / 100 + 100).astype(np.float32), t).second(None)
    np.testing.assert_allclose(hessian[0], np.cov(x.T, bias=True) / 1e4, rtol=0.01, atol=1e-5)
    constant = np.full_like(x, 1000)
    found = fit(constant, weight, t, None)
    assert np.isfinite(found.weight).all() and np.isfinite(found.bias).all()
    np.testing.assert_allclose(
        (constant @ found.weight.T + found.bias - t).mean(axis=0), 0, atol=0.01
    )


def test_what_is_not_finite_is_seen(data):
    x, _, t = data
    assert moments_of(x, t).finite
    x[7, 1] = np.inf
    assert not moments_of(x, t).finite


def test_rows_are_drawn_where_they_are_many(data):
    x, _, t = data
    few, again = moments_of(x, t, 20), moments_of(x, t, 20)
    np.testing.assert_array_equal(few.second(None)[0], again.second(None)[0])
    whole = moments_of(x, t).second(None)[0]
    assert not np.array_equal(few.second(None)[0], whole)
    np.testing.assert_allclose(few.second(None)[0], whole, atol=0.5 * np.abs(whole).max())


def test_a_free_bias_leaves_no_mean_error(data):
    x, weight, t = data
    found = fit(x, weight, t, None)
    assert found.bias is not None
    np.testing.assert_allclose((x @ found.weight.T + found.bias - t).mean(axis=0), 0, atol=1e-5)


def test_errors_are_those_that_codes_add(data):
    x, weight, t = data
    noise = 0.05**2 * 4
    for bias in (None, np.full(4, 3, np.float32)):
        found = fit(x, weight, t, bias)
        added = found.bias if bias is None else bias
        error = float(np.square(x @ found.weight.T + added - t).mean(axis=0).sum())
        # The damping counts as error too.
        assert 0.8 * found.error < error - noise < 1.05 * found.error + 0.01
        assert found.error < 0.7 * found.start_error
        assert (found.bias is None) == (bias is not None)


def test_codes_are_whole_and_in_range(data):
    x, weight, t = data
    found = fit(x, weight, t, None)
    codes = found.weight / (found.threshold / 3)[:, None]
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-5)
    assert np.abs(codes).max() <= 3 + 1e-5


def test_it_comes_back_from_a_checkpoint(data):
    x, weight, t = data
    for bias in (None, np.zeros(4, np.float32)):
        found = fit(x, weight, t, bias)
        again = FittedLayer.from_arrays(found.arrays())
        assert again.error == found.error and again.start_error == found.start_error
        np.testing.assert_array_equal(again.weight, found.weight)
        assert (again.bias is None) == (found.bias is None)
