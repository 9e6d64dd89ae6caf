"""The stage as a whole: images of the sample network, the clock, resuming, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.data.arrays import InputSpec
from onnxq.data.preprocess import Preprocess
from onnxq.errors import ModelError, RecipeError
from onnxq.load.model import load_model
from onnxq.normalise.pipeline import normalise
from onnxq.progress import Silent
from onnxq.synthesise import distilled, subject
from onnxq.synthesise.images import Synthesis, collapse_note, image_space
from onnxq.synthesise.subject import WEIGHTS, Task, find_subject
from onnxq.synthesise.synthesise import synthesise
from onnxq.train.checkpoint import Checkpoint
from tests.small_graphs import build, image_graph, run, small_graph

GREY = Preprocess((0.3053,), (0.376,))
ONE = Preprocess((0.5,), (0.25,))


@pytest.fixture(scope="module")
def unfolded(sample_models: Path) -> ir.Model:
    return normalise(load_model(sample_models / "digits_resnet.onnx"), None).unfolded


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distilled, "STEPS", 30)
    monkeypatch.setattr(distilled, "LEAST_STEPS", 10)
    monkeypatch.setattr(subject, "BATCH", 16)


def make(
    model: ir.Model, folder: Path, count: int = 40, seed: int = 0, seconds: float = 600, **more
) -> tuple[np.ndarray, Synthesis]:
    folder.mkdir()
    weights = more.pop("weights", {})
    preprocess = more.pop("preprocess", GREY)
    wanted = Task(count, weights, seed, seconds)
    samples, found = synthesise(model, preprocess, wanted, folder, Silent(), **more)
    assert found.count == samples.count
    name = str(model.graph.inputs[0].name)
    return np.concatenate([batch[name] for batch in samples.batches(7)]), found


def test_images_are_clear_of_all_classes_and_in_range(unfolded, tmp_path):
    images, found = make(unfolded, tmp_path / "a")
    assert images.shape == (40, 1, 8, 8)
    assert images.min() >= -0.3053 / 0.376 - 1e-5
    assert images.max() <= (1 - 0.3053) / 0.376 + 1e-5
    (logits,) = run(unfolded, {"input": images}).values()
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert chances.max(axis=1).mean() > 0.8
    assert found.classes == np.bincount(logits.argmax(axis=1), minlength=10).tolist()
    assert min(found.classes) >= 1
    assert found.decisions == logits.argmax(axis=1).tolist()
    assert found.pictures.shape == (40, 8, 8, 1)
    assert found.notes == []
    for losses in found.losses.values():
        assert len(losses) == found.steps == 30
    assert found.losses["bn"][-1] < 0.2 * found.losses["bn"][0]


def test_the_seed_makes_the_images(unfolded, tmp_path):
    first, again, other = (
        make(unfolded, tmp_path / name, 20, seed)[0]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    # No two batches begin with the same noise.
    assert len(np.unique(first.reshape(20, -1), axis=0)) == 20


def test_a_stopped_run_goes_on_to_the_same_images(unfolded, tmp_path):
    whole, expected = make(unfolded, tmp_path / "a", 80)
    checkpoint = Checkpoint(tmp_path / "checkpoint", {"model": "m"})
    make(unfolded, tmp_path / "b", 80, checkpoint=checkpoint)
    kept = sorted((tmp_path / "checkpoint").glob("images-*.npz"))
    assert len(kept) == 3
    kept[-1].unlink()
    images, found = make(unfolded, tmp_path / "c", 80, checkpoint=checkpoint, resume=True)
    np.testing.assert_array_equal(images, whole)
    for kind, losses in expected.losses.items():
        np.testing.assert_allclose(found.losses[kind], losses)


def test_the_clock_takes_steps_first_and_images_then(unfolded, tmp_path, monkeypatch):
    now = iter(range(10_000))
    monkeypatch.setattr(distilled.time, "monotonic", lambda: float(next(now)))
    # Five steps are said to take one second: 0.2 each. Three groups of 32 images are wanted.
    _, found = make(unfolded, tmp_path / "a", 80, seconds=0.2 * 3 * 20)
    assert (found.steps, found.count) == (20, 80)
    assert found.notes == ["--max-minutes allowed 20 of 30 steps for each of 80 of 80 images"]
    _, found = make(unfolded, tmp_path / "b", 80, seconds=0.2 * 20)
    assert (found.steps, found.count) == (10, 64)


def test_a_machine_that_becomes_slower_still_keeps_to_the_clock(unfolded, tmp_path, monkeypatch):
    # Time for all at first; of 18 seconds 10 are over after 35 steps, and 8 allow 28 more.
    now = iter([0.0, 1.0, 10.0, 14.0])
    monkeypatch.setattr(distilled.time, "monotonic", lambda: next(now))
    _, found = make(unfolded, tmp_path / "a", 80, seconds=18.0)
    assert (found.steps, found.count) == (16, 80)
    assert found.notes == ["--max-minutes allowed 16 of 30 steps for each of 80 of 80 images"]


def test_a_fixed_batch_is_kept(unfolded, tmp_path):
    fixed = unfolded.clone()
    for value in (*fixed.graph.inputs, *fixed.graph.outputs):
        value.shape = ir.Shape([4, *list(value.shape)[1:]])
    images, found = make(fixed, tmp_path / "a", 10)
    # What does not fill a batch is left out, as with any samples.
    assert (len(images), found.count) == (8, 8)


def test_losses_can_be_switched_off(unfolded, tmp_path):
    _, found = make(unfolded, tmp_path / "a", 8, weights={"bn": 0.0, "bn-moments": 2.0})
    assert found.weights == {"inception": WEIGHTS["inception"], "bn-moments": 2.0}
    assert set(found.losses) == set(found.weights)
    with pytest.raises(RecipeError, match="switches off"):
        make(unfolded, tmp_path / "b", 8, weights={"bn": 0.0, "inception": 0.0})


def test_without_variety_a_collapse_is_noted(unfolded, tmp_path):
    _, found = make(unfolded, tmp_path / "a", 32, weights={"bn": 0.0, "inception": 1e-3})
    assert collapse_note([40, 0, 0, 0]) is not None
    assert "are of 1.0 classes in effect where 4 could" in collapse_note([40, 0, 0, 0])
    assert collapse_note([10, 11, 9, 10]) is None
    assert collapse_note([1, 0, 1, 0, 1, 0, 0, 0]) is None
    assert collapse_note([]) is None
    assert found.notes == [] or "classes in effect" in found.notes[-1]


def test_a_folded_classifier_goes_by_its_classes_alone(unfolded, tmp_path):
    folded = small_graph("residual")
    images, found = make(folded, tmp_path / "a", 16, preprocess=ONE)
    assert images.shape == (16, 3, 8, 8)
    assert list(found.losses) == ["inception"]
    assert "TrainingMode.PRESERVE" in found.notes[0]


def test_what_is_no_classifier_goes_by_its_statistics_alone(tmp_path):
    channels = {name: np.ones(6, np.float32) for name in ("scale", "mean", "var")}
    body = (
        "a = Conv <pads = [1, 1, 1, 1]> (x, wx, bx) "
        "b = BatchNormalization (a, scale, b6, mean, var) y = Relu (b)"
    )
    model = image_graph(body, "float[N, 6, 8, 8] y", **channels)
    images, found = make(model, tmp_path / "a", 16, preprocess=ONE)
    assert list(found.losses) == ["bn"]
    assert (found.classes, found.decisions, found.notes) == ([], [], [])
    assert images.std() > 0


@pytest.mark.parametrize(
    ("text", "weights", "message"),
    [
        (
            "net (float[N, 4] x) => (float[N, 4, 3] y) { z = MatMul (x, w) y = Unsqueeze (z, a) }",
            {"w": (4, 3), "a": np.array([1])},
            "can.t generate images, .*=TrainingMode.PRESERVE",
        ),
        (
            "net (float[N, 4] x, float[N, 4] z) => (float[N, 3] y) { s = Add (x, z) "
            "y = MatMul (s, w) }",
            {"w": (4, 3)},
            "'x' .*'z' .*one float32 input",
        ),
        (
            "net (float[N, 3, H, W] x) => (float[N, 3] y) { p = GlobalAveragePool (x) "
            "y = Flatten (p) }",
            {},
            "whose size is free; .* --crop, or --resize",
        ),
        (
            "net (float[N, 4] x) => (float[N, 4] y) { y = LpNormalization <axis = 1> (x) }",
            {},
            r"none passes the node .* \(LpNormalization\)",
        ),
    ],
)
def test_what_can_not_be_made_is_refused_in_a_sentence(text, weights, message, tmp_path):
    model = build(text, weights)
    with pytest.raises(ModelError, match=message):
        make(model, tmp_path / "a", 4, preprocess=None)


def test_without_preprocessing_the_range_is_open_and_said_so(unfolded):
    subject = find_subject(unfolded, None)
    assert subject.space.low is None
    assert "--mean and --std" in subject.notes[0]
    pixels = subject.space.pixels(np.linspace(-4, 9, 64, dtype=np.float32).reshape(1, 1, 8, 8))
    assert (pixels.min(), pixels.max(), pixels.shape) == (0, 255, (1, 8, 8, 1))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("bgr", [False, True])
def test_pixels_are_those_that_preprocessing_would_take(layout, bgr):
    preprocess = Preprocess((0.1, 0.4, 0.7), (0.2, 0.3, 0.5), layout=layout, bgr=bgr)
    shape = (None, 3, 5, 4) if layout == "nchw" else (None, 5, 4, 3)
    space = image_space([InputSpec("x", np.dtype(np.float32), shape)], preprocess)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3)).astype(np.uint8)
    inputs = preprocess.normalise(pixels)
    np.testing.assert_array_equal(space.clip(inputs.copy()), inputs)
    shown = space.pixels(inputs)
    np.testing.assert_array_equal(shown, pixels)


def test_free_sides_are_those_of_the_preprocessing():
    spec = InputSpec("x", np.dtype(np.float32), (None, 3, None, None))
    cropped = Preprocess((0.5,), (0.5,), resize=40, crop=32)
    assert image_space([spec], cropped).shape == (3, 32, 32)
    resized = Preprocess((0.5,), (0.5,), resize=(24, 40))
    assert image_space([spec], resized).shape == (3, 24, 40)


def test_batches_are_smaller_where_images_are_large():
    small, large = small_graph("relu"), small_graph("relu").clone()
    for node in large.graph:
        for value in node.outputs:
            if len(value.shape) == 4:
                value.shape = ir.Shape(["N", 64, 320, 320])
    assert subject.batch_size(small) == subject.BATCH == 16
    assert subject.LEAST_BATCH <= subject.batch_size(large) < 16
