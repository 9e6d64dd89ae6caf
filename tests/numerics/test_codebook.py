from __future__ import annotations

import numpy as np
import pytest

from onnxq.numerics import codebook as codebook_module
from onnxq.numerics.codebook import fit_codebook, fit_codebooks, look_up


def channels(shape: tuple[int, ...] = (8, 6, 3, 3), axis: int = 0) -> np.ndarray:
    """Weights whose channels differ in spread by up to 100."""
    rng = np.random.default_rng(1)
    spread = np.logspace(-2, 0, shape[axis]).reshape([-1 if i == axis else 1 for i in range(4)])
    return (rng.normal(0, 1, shape) * spread).astype(np.float32)


def error(weight: np.ndarray, count: int, axis: int | None, largest: int | None) -> float:
    found = fit_codebook(weight, count, axis, largest)
    return float(np.square(look_up(found, found.scale, axis) - weight).sum())


@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize("largest", [127, 63, None])
def test_types_shapes_and_ranges(axis, largest):
    weight = channels((8, 6, 3, 3), axis or 0)
    found = fit_codebook(weight, 16, axis, largest)
    assert found.indices.shape == weight.shape and found.indices.dtype == np.uint8
    assert found.indices.max() < found.centroids.size <= 16
    assert found.scale.shape == (() if axis is None else (weight.shape[axis],))
    assert found.centroids.dtype == (np.float32 if largest is None else np.int8)
    assert (np.diff(found.centroids.astype(float)) > 0).all()
    if largest is not None:
        assert np.abs(found.centroids.astype(int)).max() == largest
    real = look_up(found, found.scale, axis)
    assert real.dtype == np.float32 and real.shape == weight.shape


def test_a_scale_per_channel_lowers_the_error_where_channels_differ():
    assert error(channels(), 8, 0, None) < 0.8 * error(channels(), 8, None, None)


def test_int8_centroids_cost_little():
    assert error(channels(), 16, 0, 127) < 1.05 * error(channels(), 16, 0, None)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constant_weights(value):
    weight = np.full((4, 3, 1, 1), value, np.float32)
    for largest in (127, None):
        found = fit_codebook(weight, 4, 0, largest)
        np.testing.assert_allclose(look_up(found, found.scale, 0), weight, rtol=1e-6)


def test_a_dead_channel_stays_dead():
    weight = channels()
    weight[3] = 0
    found = fit_codebook(weight, 16, 0, 127)
    assert np.abs(look_up(found, found.scale, 0)[3]).max() < 1e-3 * np.abs(weight).max()


@pytest.mark.parametrize("axis", [0, 1, None])
def test_blocks_do_not_change_the_result(axis, monkeypatch):
    weight = channels((8, 6, 3, 3), axis or 0)
    whole = fit_codebook(weight, 8, axis, 127)
    monkeypatch.setattr(codebook_module, "BLOCK", 100)
    cut = fit_codebook(weight, 8, axis, 127)
    np.testing.assert_array_equal(whole.indices, cut.indices)
    np.testing.assert_array_equal(whole.centroids, cut.centroids)


@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize("largest", [127, None])
def test_several_counts_at_once_are_the_same_bytes_as_one_by_one(axis, largest):
    weight = channels((8, 6, 3, 3), axis or 0)
    for count, book in fit_codebooks(weight, [2, 6, 16, 256, 100], axis, largest).items():
        alone = fit_codebook(weight, count, axis, largest)
        assert book.centroids.tobytes() == alone.centroids.tobytes()
        assert book.indices.tobytes() == alone.indices.tobytes()
        assert book.scale.tobytes() == alone.scale.tobytes()


@pytest.mark.parametrize("largest", [127, 63, None])
def test_zero_stays_exact_in_a_sparse_layer(largest):
    weight = channels()
    weight[np.random.default_rng(0).random(weight.shape) < 0.3] = 0
    for count, book in fit_codebooks(weight, [2, 3, 8, 64, 256], 0, largest).items():
        assert 0 in book.centroids and book.centroids.size <= count
        assert not look_up(book, book.scale, 0)[weight == 0].any()
