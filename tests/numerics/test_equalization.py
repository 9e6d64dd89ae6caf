from __future__ import annotations

import numpy as np
import pytest

from onnxq.numerics.corrections import (
    SCALE_LIMIT,
    Link,
    equalization_scales,
    in_ranges,
    out_ranges,
    scale_input,
    scale_output,
)


def magnitude(*rows: list[float]) -> np.ndarray:
    """(1, out, in) from one row per output channel."""
    return np.array([rows], np.float64)


def test_one_pair_meets_in_the_geometric_mean() -> None:
    """Eq. 11: both ranges become sqrt(r1 r2)."""
    layers = {"a": magnitude([1.0, 0.5], [100.0, 3.0]), "b": magnitude([4.0, 9.0], [2.0, 25.0])}
    (scale,) = equalization_scales(layers, [Link("a", "b")])
    np.testing.assert_allclose(scale, [np.sqrt(1 / 4), np.sqrt(100 / 25)])
    geometric = [2.0, 50.0]
    np.testing.assert_allclose(out_ranges(scale_output(layers["a"], 1 / scale)), geometric)
    np.testing.assert_allclose(in_ranges(scale_input(layers["b"], scale)), geometric)


def test_a_chain_converges_to_equal_ranges_at_every_link() -> None:
    rng = np.random.default_rng(0)
    layers = {
        "a": rng.lognormal(0, 2, (1, 6, 3)),
        "depthwise": rng.lognormal(0, 2, (6, 1, 1)),
        "b": rng.lognormal(0, 2, (1, 5, 6)),
    }
    links = [Link("a", "depthwise"), Link("depthwise", "b")]
    first, second = equalization_scales(layers, links)
    a = scale_output(layers["a"], 1 / first)
    depthwise = scale_output(scale_input(layers["depthwise"], first), 1 / second)
    b = scale_input(layers["b"], second)
    np.testing.assert_allclose(out_ranges(a), in_ranges(depthwise), rtol=0.01)
    np.testing.assert_allclose(out_ranges(depthwise), in_ranges(b), rtol=0.01)


def test_groups_keep_their_channels_apart() -> None:
    layers = {"a": np.ones((1, 4, 1)), "b": np.full((2, 3, 2), 4.0)}
    layers["b"][1, :, 0] = 16.0
    (scale,) = equalization_scales(layers, [Link("a", "b")])
    np.testing.assert_allclose(scale, [0.5, 0.5, 0.25, 0.5])


@pytest.mark.parametrize("dead_layer", ["a", "b"])
def test_a_dead_channel_without_a_floor_keeps_one(dead_layer: str) -> None:
    layers = {"a": np.full((1, 2, 2), 9.0), "b": np.ones((1, 2, 2))}
    if dead_layer == "a":
        layers["a"][0, 0, :] = 0.0
    else:
        layers["b"][0, :, 0] = 0.0
    (scale,) = equalization_scales(layers, [Link("a", "b")])
    np.testing.assert_allclose(scale, [1.0, 3.0])


def test_behind_a_dead_channel_the_weights_shrink_as_far_as_its_floor() -> None:
    layers = {"a": magnitude([0.0], [1.0]), "b": magnitude([1000.0, 1.0])}
    (free,) = equalization_scales(layers, [Link("a", "b", np.array([0.0, 0.0]))])
    (held,) = equalization_scales(layers, [Link("a", "b", np.array([0.25, 0.0]))])
    assert 1 / SCALE_LIMIT <= free[0] < 0.01
    assert held[0] == 0.25


def test_fixed_channels_and_floors_are_kept() -> None:
    layers = {"a": magnitude([1.0], [1.0], [1.0]), "b": magnitude([100.0, 100.0, 100.0])}
    link = Link("a", "b", np.array([0.0, 0.5, 0.0]), np.array([False, False, True]))
    (scale,) = equalization_scales(layers, [link])
    np.testing.assert_allclose(scale, [0.1, 0.5, 1.0])


def test_all_dead_layers_are_left_alone() -> None:
    layers = {"a": np.zeros((1, 2, 2)), "b": np.ones((1, 2, 2))}
    (scale,) = equalization_scales(layers, [Link("a", "b")])
    np.testing.assert_array_equal(scale, 1.0)
