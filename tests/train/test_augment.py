"""Mirrored and moved images: the arithmetic, the draws, and the teacher's word on them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from small_graphs import run, small_graph

from onnxq.data.arrays import InputSpec
from onnxq.data.preprocess import Preprocess
from onnxq.data.samples import open_samples
from onnxq.errors import RecipeError
from onnxq.load.interface import input_specs
from onnxq.runtime.dataset import Joined, Mapped
from onnxq.train.augment import (
    Augmentation,
    ImageLayout,
    check_augmentation,
    chosen_kinds,
    flip,
    image_layout,
    shift,
)
from onnxq.train.objective import target_name
from onnxq.train.teacher import Teacher, keep_targets

IMAGES = arrays(
    np.float32, st.tuples(*[st.integers(1, 9)] * 3), elements=st.floats(-9, 9, width=32)
)
NCHW = ImageLayout("x", 2, 3)


@given(IMAGES, st.integers(0, 2))
def test_flipping_twice_changes_nothing(image, axis):
    np.testing.assert_array_equal(flip(flip(image, axis), axis), image)
    np.testing.assert_array_equal(flip(image, axis).take(0, axis), image.take(-1, axis))


@given(IMAGES, st.integers(0, 2), st.integers(-8, 8))
def test_a_shift_moves_by_the_number_and_repeats_the_edge(image, axis, pixels):
    found, size = shift(image, pixels, axis), image.shape[axis]
    assert found.shape == image.shape
    for i in range(size):
        source = min(max(i - pixels, 0), size - 1)
        np.testing.assert_array_equal(found.take(i, axis), image.take(source, axis))


def outputs_of(folder: Path, count: int = 24) -> Joined:
    model = small_graph("residual")
    x = np.random.default_rng(0).normal(size=(count, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "x.npz", x=x)
    samples = open_samples(folder / "x.npz", input_specs(model), None)
    return keep_targets(Teacher(model, ["y"]), samples, folder)[0]


def changed(outputs: Joined, kinds, order, epoch=0, size=8, seed=0):
    augmentation = Augmentation(Teacher(small_graph("residual"), ["y"]), kinds, NCHW, seed)
    dataset = Mapped(outputs, partial(augmentation.apply, epoch=epoch))
    found = list(dataset.batches(size, order))
    return {name: np.concatenate([feeds[name] for feeds in found]) for name in found[0]}


def test_what_is_drawn_depends_on_seed_epoch_and_position_alone(tmp_path):
    outputs = outputs_of(tmp_path)
    order = np.random.default_rng(3).permutation(24)
    first = changed(outputs, ("flip", "shift"), order)
    others = changed(outputs, ("flip", "shift"), np.arange(24), size=5)
    np.testing.assert_array_equal(first["x"], others["x"][order])
    # In the middle of an epoch too.
    rest = changed(outputs, ("flip", "shift"), order[16:])
    for name, rows in rest.items():
        np.testing.assert_array_equal(rows, first[name][16:])
    for other in ({"epoch": 1}, {"seed": 1}):
        assert not np.array_equal(
            changed(outputs, ("flip", "shift"), order, **other)["x"], first["x"]
        )


def test_targets_are_what_the_teacher_makes_of_the_changed_images(tmp_path):
    outputs = outputs_of(tmp_path)
    found = changed(outputs, ("flip", "shift"), np.arange(24))
    expected = run(small_graph("residual"), {"x": found["x"]})["y"]
    np.testing.assert_allclose(found[target_name("y")], expected, rtol=1e-4, atol=1e-5)
    plain = next(outputs.batches(24))
    assert not np.allclose(found[target_name("y")], plain[target_name("y")], atol=1e-3)


@pytest.mark.parametrize("kind", ["flip", "shift"])
def test_every_image_is_one_of_its_own_forms_and_all_forms_come(tmp_path, kind):
    outputs = outputs_of(tmp_path)
    plain = next(outputs.batches(24))["x"]
    forms = {
        "flip": [plain, plain[..., ::-1]],
        # An eighth of 8 pixels is one, either way, up and sideways.
        "shift": [shift(shift(plain, a, 2), b, 3) for a in (-1, 0, 1) for b in (-1, 0, 1)],
    }[kind]
    seen = set()
    for epoch in range(4):
        found = changed(outputs, (kind,), np.arange(24), epoch=epoch)["x"]
        for i, image in enumerate(found):
            equal = [j for j, form in enumerate(forms) if np.array_equal(image, form[i])]
            assert len(equal) == 1
            seen |= set(equal)
    assert seen == set(range(len(forms)))


def spec(*shape: int | None) -> InputSpec:
    return InputSpec("x", np.dtype(np.float32), shape)


def test_the_preprocessing_says_where_the_channels_are():
    both = spec(None, 3, 8, 3)
    nhwc = Preprocess(mean=(0.5,), std=(0.5,), layout="nhwc")
    assert image_layout([both], nhwc) == ImageLayout("x", 1, 2)
    assert image_layout([both], None) == NCHW
    assert image_layout([spec(None, 8, 8, 1)], None) == ImageLayout("x", 1, 2)


@pytest.mark.parametrize(
    "inputs", [[spec(None, 192)], [spec(None, 3, 8, 8)] * 2, [spec(None, 7, 8, 9)]]
)
def test_a_model_without_images_is_refused_in_one_sentence(inputs):
    assert image_layout(inputs, None) is None
    with pytest.raises(RecipeError, match="'augment' changes images and the model takes 'x'") as e:
        check_augmentation(("flip",), inputs, None)
    assert str(e.value).endswith(".") and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("augment", "real", "made"),
    [
        (("auto",), (), ("shift",)),
        (("none",), (), ()),
        (("flip", "shift"), ("flip", "shift"), ("flip", "shift")),
    ],
)
def test_made_images_are_moved_unless_something_else_is_said(augment, real, made):
    assert chosen_kinds(augment, synthetic=False) == real
    assert chosen_kinds(augment, synthetic=True) == made


@pytest.mark.parametrize("cores", [1, 3])
def test_the_number_of_cores_does_not_change_a_bit(tmp_path, monkeypatch, cores):
    outputs = outputs_of(tmp_path)
    expected = changed(outputs, ("flip", "shift"), np.arange(24))
    monkeypatch.setattr("onnxq.runtime.session.available_cores", lambda: cores)
    found = changed(outputs, ("flip", "shift"), np.arange(24))
    for name, rows in expected.items():
        np.testing.assert_array_equal(found[name], rows)
