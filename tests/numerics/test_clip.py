from __future__ import annotations

import time
from dataclasses import dataclass, field

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.numerics.clip import (
    CLIP_METHODS,
    ClipMethod,
    calibrated_range,
    laplace_clip,
    normal_clip,
)
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.quantizers import ACTIVATIONS, SMALLEST_WIDTH, Kind


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@dataclass
class Statistics:
    minimum: float
    maximum: float
    histogram: Histogram = field(default_factory=Histogram)


def statistics_of(values: np.ndarray) -> Statistics:
    statistics = Statistics(float(values.min()), float(values.max()))
    statistics.histogram.add(values)
    return statistics


def fake_quant(x: np.ndarray, lowest: float, width: float, num_bits: int, kind: Kind) -> np.ndarray:
    quant_max = 2**num_bits - 1
    if kind == "symmetric":
        half = 2 ** (num_bits - 1)
        scale = width / 2 / (half - 1)
        return scale * np.clip(np.rint(x / scale), -half, half - 1)
    scale = width / quant_max
    zero_point = np.clip(np.rint(-lowest / scale), 0, quant_max)
    return scale * (np.clip(np.rint(x / scale) + zero_point, 0, quant_max) - zero_point)


def error(x: np.ndarray, found: tuple[float, float], num_bits: int, kind: Kind) -> float:
    return float(np.mean((x - fake_quant(x.astype(np.float64), *found, num_bits, kind)) ** 2))


DISTRIBUTIONS = {
    "laplace": lambda rng, n: rng.laplace(size=n),
    "normal": lambda rng, n: rng.normal(size=n),
    "relu": lambda rng, n: np.maximum(rng.normal(size=n), 0),
    "relu6": lambda rng, n: np.clip(4 * rng.normal(size=n), 0, 6),
    "skewed": lambda rng, n: np.where(rng.random(n) < 0.1, -0.1, 3) * rng.exponential(size=n),
    "uniform": lambda rng, n: rng.uniform(-1, 2, n),
}


def draw(name: str, rng: np.random.Generator, n: int = 100_000) -> np.ndarray:
    return DISTRIBUTIONS[name](rng, n).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e4, 1e4, width=32)),
    st.sampled_from(CLIP_METHODS),
    st.integers(2, 8),
    st.sampled_from(list(ACTIVATIONS)),
)
def test_range_holds_zero_and_stays_inside_the_largest(
    values: np.ndarray, method: ClipMethod, num_bits: int, kind: Kind
) -> None:
    lowest, width = calibrated_range(statistics_of(values), method, num_bits, kind)
    largest = max(float(np.abs(values).max()), SMALLEST_WIDTH)
    # The highest value is a sum, which is rounded.
    assert lowest <= 0.0 <= lowest + width + 1e-15 * largest
    assert -lowest <= largest and lowest + width <= largest * (1 + 1e-15)
    if kind == "positive":
        assert lowest == 0.0
    elif kind == "symmetric":
        assert lowest == -width / 2
    reached = values.max() if kind == "positive" else np.abs(values).max()
    assert (width > SMALLEST_WIDTH) == (reached > SMALLEST_WIDTH)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-100, 100, width=32)),
    st.sampled_from(CLIP_METHODS),
)
def test_range_scales_with_the_values(values: np.ndarray, method: ClipMethod) -> None:
    """Powers of two scale every step of the arithmetic exactly, but for rounding at the end."""
    values = np.where(np.abs(values) < 1e-3, np.float32(0), values)
    one = calibrated_range(statistics_of(values), method, 8, "asymmetric")
    eight = calibrated_range(statistics_of(values * np.float32(8)), method, 8, "asymmetric")
    if values.any():
        np.testing.assert_allclose(eight, np.multiply(one, 8), rtol=1e-9)


@pytest.mark.parametrize("num_bits", [3, 4, 8])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_is_no_worse_than_a_full_search(
    name: str, num_bits: int, symmetric: bool, rng: np.random.Generator
) -> None:
    values = draw(name, rng)
    signed = bool(values.min() < 0)
    kind: Kind = "positive" if not signed else "symmetric" if symmetric else "asymmetric"
    statistics = statistics_of(values)
    found = error(values, calibrated_range(statistics, "mse", num_bits, kind), num_bits, kind)
    lowest, width = calibrated_range(statistics, "max", num_bits, kind)
    factors = np.linspace(0.05, 1.0, 24)
    others = factors if kind == "asymmetric" else [None]
    best = min(
        error(values, (lowest * (a or b), (lowest + width) * b - lowest * (a or b)), num_bits, kind)
        for a in others
        for b in factors
    )
    # The histogram stands for the values: 2 % of the error at most.
    assert found <= 1.02 * best


@pytest.mark.parametrize("method", ["mse", "aciq", "kl"])
def test_a_spike_of_zeros_changes_nothing(method: ClipMethod, rng: np.random.Generator) -> None:
    values = np.abs(draw("laplace", rng))
    with_zeros = np.concatenate([values, np.zeros(10 * values.size, np.float32)])
    assert calibrated_range(statistics_of(values), method, 4, "positive") == pytest.approx(
        calibrated_range(statistics_of(with_zeros), method, 4, "positive"), rel=1e-12
    )


@pytest.mark.parametrize("method", CLIP_METHODS)
def test_the_spike_of_relu6_at_its_bound_is_kept(
    method: ClipMethod, rng: np.random.Generator
) -> None:
    values = draw("relu6", rng)
    found = calibrated_range(statistics_of(values), method, 8, "positive")
    assert found.width == pytest.approx(6, rel=0.01)


def test_max_is_the_exact_range(rng: np.random.Generator) -> None:
    values = draw("skewed", rng)
    low, high = float(values.min()), float(values.max())
    statistics = statistics_of(values)
    largest = max(-low, high)
    assert calibrated_range(statistics, "max", 8, "asymmetric") == (low, high - low)
    assert calibrated_range(statistics, "max", 8, "symmetric") == (-largest, 2 * largest)
    assert calibrated_range(statistics, "max", 8, "positive") == (0.0, high)


@pytest.mark.parametrize("kind", ["asymmetric", "symmetric"])
def test_percentile_agrees_with_numpy(kind: Kind, rng: np.random.Generator) -> None:
    values = draw("normal", rng)
    statistics = statistics_of(values)
    lowest, width = calibrated_range(statistics, "percentile", 8, kind)
    highest, tolerance = lowest + width, 2 * statistics.histogram.width
    if kind == "symmetric":
        assert highest == pytest.approx(np.percentile(np.abs(values), 99.99), abs=tolerance)
    else:
        assert highest == pytest.approx(np.percentile(values, 99.995), abs=tolerance)
        assert lowest == pytest.approx(np.percentile(values, 0.005), abs=tolerance)


@pytest.mark.parametrize(
    ("num_bits", "laplace", "normal"), [(2, 2.83, 1.71), (3, 3.89, 2.15), (4, 5.03, 2.55)]
)
def test_aciq_matches_the_published_clips(num_bits: int, laplace: float, normal: float) -> None:
    assert laplace_clip(num_bits) == pytest.approx(laplace, abs=0.01)
    assert normal_clip(num_bits) == pytest.approx(normal, abs=0.01)


@pytest.mark.parametrize(
    ("name", "clip"), [("laplace", laplace_clip(4)), ("normal", normal_clip(4))]
)
def test_aciq_finds_the_density(name: str, clip: float, rng: np.random.Generator) -> None:
    found = calibrated_range(statistics_of(draw(name, rng)), "aciq", 4, "symmetric")
    assert -found.lowest == pytest.approx(clip, rel=0.02)


def test_aciq_takes_relu_for_half_a_density(rng: np.random.Generator) -> None:
    values = np.maximum(draw("laplace", rng), 0)
    found = calibrated_range(statistics_of(values), "aciq", 4, "positive")
    assert found.width == pytest.approx(laplace_clip(5), rel=0.02)


def test_kl_cuts_a_lone_outlier_off(rng: np.random.Generator) -> None:
    values = np.append(np.abs(draw("normal", rng)), np.float32(40))
    assert 3.0 < calibrated_range(statistics_of(values), "kl", 8, "positive").width < 15.0


@pytest.mark.parametrize("method", CLIP_METHODS)
@pytest.mark.parametrize("kind", ["positive", "asymmetric"])
def test_a_dead_tensor_has_the_smallest_range(method: ClipMethod, kind: Kind) -> None:
    found = calibrated_range(statistics_of(np.zeros(9, np.float32)), method, 8, kind)
    assert found == (0, SMALLEST_WIDTH)


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ValueError, match="'median'"):
        calibrated_range(statistics_of(np.ones(3, np.float32)), "median", 8, "symmetric")  # type: ignore[arg-type]


@pytest.mark.parametrize("ends", [(-np.inf, 1.0), (0.0, np.nan)])
def test_values_that_are_not_finite_are_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="not finite"):
        calibrated_range(Statistics(*ends), "mse", 8, "asymmetric")


@pytest.mark.parametrize("method", CLIP_METHODS)
def test_a_tensor_takes_less_than_20_ms(method: ClipMethod, rng: np.random.Generator) -> None:
    statistics = statistics_of(draw("normal", rng))
    times = []
    for _ in range(3):
        start = time.thread_time()
        calibrated_range(statistics, method, 8, "asymmetric")
        times.append(time.thread_time() - start)
    assert min(times) < 0.02
