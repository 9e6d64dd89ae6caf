"""The generator: its shape, its gradients, its training, and the file that it is kept in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.data.arrays import InputSpec
from onnxq.data.preprocess import Preprocess
from onnxq.engine import Engine
from onnxq.errors import ModelError
from onnxq.export.save import save_model
from onnxq.load.model import load_model
from onnxq.normalise.pipeline import normalise
from onnxq.progress import Silent
from onnxq.synthesise import subject
from onnxq.synthesise import synthesise as stage
from onnxq.synthesise.generated import GeneratorTraining
from onnxq.synthesise.generator import (
    LATENT,
    NOISE,
    Generator,
    before_model,
    size_generator,
    stand_alone,
)
from onnxq.synthesise.images import ImageSpace, Synthesis, image_space
from onnxq.synthesise.objective import LOSS
from onnxq.synthesise.subject import Task, find_subject
from onnxq.synthesise.synthesise import synthesise
from onnxq.train.checkpoint import Checkpoint
from tests.small_graphs import image_graph, run

GREY = Preprocess((0.3053,), (0.376,))


@pytest.fixture(scope="module")
def unfolded(sample_models: Path) -> ir.Model:
    return normalise(load_model(sample_models / "digits_resnet.onnx"), None).unfolded


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "STEPS", 12)
    monkeypatch.setattr(subject, "BATCH", 16)


def space_of(shape: tuple[int, ...], layout: str = "nchw", std: float = 0.25) -> ImageSpace:
    spec = InputSpec("x", np.dtype(np.float32), (None, *shape))
    return image_space([spec], Preprocess((0.5,), (std,), layout=layout))


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, LATENT), np.float32)


@pytest.mark.parametrize(
    ("shape", "classes", "channels", "base"),
    [
        ((3, 32, 32), 10, (32, 32, 16), (8, 8)),
        ((3, 224, 224), 1000, (64, 64, 32, 16, 16, 16), (7, 7)),
        ((1, 8, 8), 10, (32, 32), (4, 4)),
        ((3, 30, 44), 0, (32, 32, 16), (8, 11)),
    ],
)
def test_its_size_is_that_of_images_and_classes(shape, classes, channels, base):
    generator = size_generator(space_of(shape), classes)
    assert (generator.channels, generator.base) == (channels, base)


@pytest.mark.parametrize(
    ("shape", "layout"), [((3, 18, 23), "nchw"), ((18, 23, 3), "nhwc"), ((16, 16, 1), "nhwc")]
)
@pytest.mark.parametrize("opset", [13, 18])
def test_images_have_the_shape_mean_and_deviation_of_the_space(shape, layout, opset):
    generator = size_generator(space_of(shape, layout), 10)
    parameters = generator.parameters(np.random.default_rng(0))
    model = stand_alone(generator, parameters, opset)
    (images,) = run(model, {NOISE: noise(64)}).values()
    assert images.shape == (64, *shape)
    assert images.min() >= -2 and images.max() <= 2
    channel = (0, 2, 3) if layout == "nchw" else (0, 1, 2)
    # The range cuts off a little of what the last normalisation makes exact.
    np.testing.assert_allclose(images.mean(axis=channel), 0, atol=0.05)
    np.testing.assert_allclose(images.std(axis=channel), 1, atol=0.1)
    assert len(np.unique(images.reshape(64, -1), axis=0)) == 64


def test_what_is_no_image_has_no_generator():
    with pytest.raises(ModelError, match="leave out --synthesis generator"):
        size_generator(image_space([InputSpec("x", np.dtype(np.float32), (None, 7))], None), 3)


def test_a_model_behind_it_computes_the_same():
    model = image_graph("g = GlobalAveragePool (x) y = Flatten (g)", "float[N, 3] y")
    generator = size_generator(space_of((3, 8, 8)), 3)
    parameters = generator.parameters(np.random.default_rng(0))
    joined, names = before_model(model, generator)
    assert sorted(names) == sorted(parameters)
    assert [value.name for value in model.graph.inputs] == ["x"]
    (images,) = run(stand_alone(generator, parameters, 14), {NOISE: noise(6)}).values()
    expected = run(model, {"x": images})["y"]
    found = run(joined, {NOISE: noise(6), **parameters})["y"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_gradients_of_parameters_are_those_of_finite_differences():
    body = (
        "c = Conv <pads = [1, 1, 1, 1]> (x, wx, bx) t = Tanh (c) s = Mul (t, t) "
        "loss = ReduceSum <keepdims = 0> (s)"
    )
    model = image_graph(body, "float loss")
    # A wide range: its edges have no gradient.
    generator = Generator(space_of((3, 8, 8), std=0.05), (4, 4), (4, 4))
    parameters = generator.parameters(np.random.default_rng(0))
    joined, names = before_model(model, generator)
    engine = Engine(joined, names, "loss", workers=1)
    _, found = engine.gradients(parameters, [{NOISE: noise(5)}])
    rng = np.random.default_rng(1)
    for name in names:
        along = rng.standard_normal(parameters[name].shape, np.float32)
        sums = []
        for sign in (1, -1):
            moved = {**parameters, name: parameters[name] + sign * np.float32(2e-3) * along}
            sums.append(float(run(joined, {NOISE: noise(5), **moved})["loss"]))
        numeric = (sums[0] - sums[1]) / 4e-3
        size = float(np.linalg.norm(found[name])) * float(np.linalg.norm(along))
        assert float((found[name] * along).sum()) == pytest.approx(numeric, abs=0.02 * size + 0.05)


def test_training_lowers_the_losses(unfolded):
    subject = find_subject(unfolded, GREY)
    objective = subject.objective({"inception": 3.0, "bn": 1.0})
    generator = size_generator(subject.space, subject.classes)
    training = GeneratorTraining(subject.model, generator, objective, 15, seed=0)
    losses = [training.step(16, 2) for _ in range(15)]
    for kind in ("inception", "bn"):
        assert losses[-1][kind] < losses[0][kind]
    # Another run with the same seed is the same.
    again = GeneratorTraining(subject.model, generator, objective, 15, seed=0)
    assert again.step(16, 2) == losses[0]


def make(
    model: ir.Model, folder: Path, count: int = 20, **more: object
) -> tuple[np.ndarray, Synthesis]:
    folder.mkdir()
    wanted = Task(count, {}, 0, 600, "generator")
    samples, found = synthesise(model, GREY, wanted, folder, Silent(), **more)
    return np.concatenate([batch["input"] for batch in samples.batches(7)]), found


def test_a_saved_generator_makes_the_same_images(unfolded, tmp_path):
    images, found = make(unfolded, tmp_path / "a")
    assert images.shape == (20, 1, 8, 8)
    assert (found.method, found.steps, len(found.losses["bn"])) == ("generator", 12, 12)
    save_model(found.generator, tmp_path / "g.onnx")
    saved = load_model(tmp_path / "g.onnx")
    again, loaded = make(unfolded, tmp_path / "b", generator=saved)
    np.testing.assert_array_equal(images, again)
    assert (loaded.steps, loaded.losses) == (0, {})
    more, _ = make(unfolded, tmp_path / "c", 40, generator=saved)
    np.testing.assert_array_equal(more[:16], images[:16])


def test_a_stopped_training_goes_on_to_the_same_images(unfolded, tmp_path, monkeypatch):
    whole, expected = make(unfolded, tmp_path / "a")
    checkpoint = Checkpoint(tmp_path / "checkpoint", {"model": "m"})
    monkeypatch.setattr(stage, "SAVE_SECONDS", 0.0)
    step, steps = GeneratorTraining.step, []

    def stop(self: GeneratorTraining, size: int, shards: int) -> dict[str, float]:
        if self.done == 7 and not steps:
            steps.append(7)
            raise KeyboardInterrupt
        return step(self, size, shards)

    monkeypatch.setattr(GeneratorTraining, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        make(unfolded, tmp_path / "b", checkpoint=checkpoint)
    images, found = make(unfolded, tmp_path / "c", checkpoint=checkpoint, resume=True)
    np.testing.assert_array_equal(images, whole)
    assert found.losses == expected.losses


def test_the_clock_bounds_the_steps(unfolded, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "LEAST_STEPS", 2)
    now = iter(range(10_000))
    monkeypatch.setattr(stage.time, "monotonic", lambda: float(next(now)))
    folder = tmp_path / "a"
    folder.mkdir()
    # One step is said to take a second.
    wanted = Task(8, {}, 0, 9.0, "generator")
    _, found = synthesise(unfolded, GREY, wanted, folder, Silent())
    assert (found.steps, found.count) == (9, 8)
    assert found.notes == ["--max-minutes allowed 9 of 12 steps of the generator"]


def test_other_files_are_no_generators(unfolded, tmp_path):
    with pytest.raises(ModelError, match="is no generator"):
        make(unfolded, tmp_path / "a", generator=unfolded)
    _, found = make(unfolded, tmp_path / "b")
    wider = found.generator.clone()
    wider.graph.outputs[0].shape = ir.Shape(["N", 3, 8, 8])
    with pytest.raises(ModelError, match=r"images of shape \(3, 8, 8\); .* takes \(1, 8, 8\)"):
        make(unfolded, tmp_path / "c", generator=wider)
    assert LOSS not in {value.name for value in found.generator.graph.outputs}
