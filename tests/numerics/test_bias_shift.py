"""Bias correction's shift against the layer itself."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.numerics.corrections import shift_weight_gradient, weight_error_shift


def conv_1x1(weight: np.ndarray, x: np.ndarray, groups: int) -> np.ndarray:
    """(N, in) -> (N, out), a convolution whose kernel covers its whole input."""
    count, per_group = len(weight) // groups, weight.shape[1]
    flat = weight.reshape(len(weight), per_group, -1).sum(axis=2)
    parts = [
        x[:, g * per_group : (g + 1) * per_group] @ flat[g * count : (g + 1) * count].T
        for g in range(groups)
    ]
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize(
    ("out", "per_group", "groups"), [(6, 4, 1), (6, 2, 3), (6, 1, 6), (8, 1, 4)]
)
def test_the_mean_error_of_a_convolution_is_taken_out(out, per_group, groups):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(out, per_group, 3, 3)).astype(np.float32)
    fake = (weight + rng.normal(0, 0.1, weight.shape)).astype(np.float32)
    x = rng.normal(1, 1, (200, per_group * groups))
    shift = weight_error_shift(weight, fake, x.mean(axis=0), "Conv", 0)
    errors = conv_1x1(fake, x, groups) - conv_1x1(weight, x, groups)
    np.testing.assert_allclose(shift, errors.mean(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_mean_error_of_a_product_is_taken_out(axis):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5, 5)).astype(np.float32)
    fake = (weight + rng.normal(0, 0.1, weight.shape)).astype(np.float32)
    x = rng.normal(1, 1, (200, 5))
    shift = weight_error_shift(weight, fake, x.mean(axis=0), "Gemm", axis)
    error = (fake - weight).T if axis == 0 else fake - weight
    np.testing.assert_allclose(shift, (x @ error).mean(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("op_type", "shape", "inputs", "axis"),
    [
        ("Conv", (6, 4, 3, 3), 4, 0),
        ("Conv", (6, 2, 3), 6, 0),
        ("Conv", (6, 1, 3, 3), 6, 0),
        ("Gemm", (6, 4), 4, 0),
        ("Gemm", (4, 6), 4, 1),
    ],
)
def test_the_gradient_through_the_shift_is_its_slope(op_type, shape, inputs, axis):
    rng = np.random.default_rng(1)
    weight, fake = rng.normal(size=(2, *shape))
    mean, upstream = rng.normal(size=inputs), rng.normal(size=shape[axis])
    found = shift_weight_gradient(upstream, mean, shape, op_type, axis)
    found = np.broadcast_to(found, shape)
    for _ in range(8):
        index = tuple(int(rng.integers(n)) for n in shape)
        losses = []
        for step in (1e-2, -1e-2):
            moved = fake.copy()
            moved[index] += step
            losses.append(-upstream @ weight_error_shift(weight, moved, mean, op_type, axis))
        np.testing.assert_allclose(
            found[index], (losses[0] - losses[1]) / 2e-2, rtol=1e-2, atol=1e-3
        )
