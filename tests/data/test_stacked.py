"""Feeds of models without an axis of samples, stacked in one file."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.data.arrays import InputSpec
from onnxq.data.samples import open_samples
from onnxq.errors import DataError


def _open(tmp_path, shapes: dict[str, tuple[int | None, ...]], **arrays: np.ndarray):
    np.savez(tmp_path / "x.npz", **arrays)
    specs = [InputSpec(name, np.dtype(np.float32), shape) for name, shape in shapes.items()]
    return open_samples(tmp_path / "x.npz", specs, None)


def _array(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("shapes", "given", "fed"),
    [
        ({"x": (3, 4, 4)}, {"x": (9, 3, 4, 4)}, {"x": (3, 4, 4)}),
        ({"x": (5,)}, {"x": (9, 5)}, {"x": (5,)}),
        ({"x": ()}, {"x": (9,)}, {"x": ()}),
        ({"x": (1, 4), "h": (2, 1, 3)}, {"x": (9, 4), "h": (9, 2, 1, 3)}, None),
        ({"x": (1, 4), "h": (2, 1, 3)}, {"x": (9, 1, 4), "h": (9, 2, 1, 3)}, None),
        ({"x": (1, 4), "g": ()}, {"x": (9, 4), "g": (9,)}, None),
        ({"x": (1, 4), "g": ()}, {"x": (9, 1, 4), "g": ()}, None),
    ],
    ids=["image", "vector", "scalar", "rows and state", "state", "scalars", "one for all"],
)
def test_each_feed_is_one_sample(tmp_path, shapes, given, fed):
    arrays = {name: _array(*shape) for name, shape in given.items()}
    samples = _open(tmp_path, shapes, **arrays)
    assert (len(samples), samples.batch) == (9, 1)
    feeds = list(samples.batches(4))
    assert len(feeds) == 9
    for name, shape in shapes.items():
        assert feeds[3][name].shape == (fed or shapes)[name] == shape
        third = arrays[name][3] if arrays[name].ndim and len(arrays[name]) == 9 else arrays[name]
        np.testing.assert_array_equal(feeds[3][name].reshape(-1), third.reshape(-1))


def test_stacks_of_different_lengths_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"the shape"):
        _open(tmp_path, {"x": (3, 4), "h": (2, 5)}, x=_array(9, 3, 4), h=_array(8, 2, 5))
