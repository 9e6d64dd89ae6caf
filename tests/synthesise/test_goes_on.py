"""A generator that goes on learning against the quantized student."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.data.preprocess import Preprocess
from onnxq.engine import Engine
from onnxq.errors import ModelError, OutputError, RecipeError
from onnxq.normalise.pipeline import normalise
from onnxq.options.recipe import Recipe
from onnxq.pipeline import compress
from onnxq.synthesise import adversarial, synthesise
from onnxq.synthesise import subject as subject_module
from onnxq.synthesise.adversarial import AdversarialGenerator, QuantizedStudent, check_adversarial
from onnxq.synthesise.generated import GeneratorDescent
from onnxq.synthesise.generator import (
    METADATA_KEY,
    NOISE,
    Generator,
    before_model,
    read_back,
    size_generator,
    stand_alone,
)
from onnxq.synthesise.images import Synthesis
from onnxq.synthesise.objective import LOSS, SynthesisObjective, term_name
from onnxq.synthesise.subject import Subject, Task, find_subject
from onnxq.train import loop
from tests.small_graphs import Feeds, Quantized, build, quantize, run
from tests.synthesise.residual_classifier import TEXT, WEIGHTS

# A wide range: its edges have no gradient.
WIDE = Preprocess((0.5,), (0.05,))
ALONE = {"adversarial": 2.0, "inception": 0.0, "bn": 0.0}


def images(count: int = 12) -> np.ndarray:
    return np.random.default_rng(2).normal(0, 5, (count, 3, 8, 8)).astype(np.float32)


def noise(count: int = 6) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, 100), np.float32)


def log_softmax(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64) - rows.max(axis=1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def entropy(student: np.ndarray, teacher: np.ndarray) -> float:
    """-(1/N) sum p_T log p_S."""
    chances = np.exp(log_softmax(teacher))
    return float(-(chances * log_softmax(student)).sum(axis=1).mean())


@pytest.fixture(scope="module")
def subject() -> Subject:
    return find_subject(normalise(build(TEXT, WEIGHTS)).unfolded, WIDE)


def quantized(**options: object) -> Quantized:
    """The student, its ranges as wide as the images of the generators below."""
    folded = normalise(build(TEXT, WEIGHTS)).model
    wide = np.clip(images(64), -10, 10)
    return quantize(folded, Feeds([{"x": wide}]), Recipe(calibration="max", **options))


def against(found: Quantized) -> tuple[QuantizedStudent, dict[str, np.ndarray]]:
    """The student and what it is fed."""
    student = QuantizedStudent(found.student.model, "x", "y")
    return student, student.feeds(found.student.feeds(found.qparams))


def gradients_of(subject: Subject, found: Quantized) -> tuple[ir.Model, dict, dict, dict]:
    """The graph from noise to the loss, its parameters, what else it takes, and gradients."""
    generator = Generator(subject.space, (4, 4), (4, 4))
    joined, names = before_model(subject.model, generator)
    student, numbers = against(found)
    attached = subject.objective(ALONE, student).attach(joined)
    values = generator.parameters(np.random.default_rng(0))
    fixed = {NOISE: noise(), **numbers}
    _, gradients = Engine(attached, names, LOSS, workers=1).gradients(values, [fixed])
    return attached, values, fixed, gradients


@pytest.mark.parametrize("bits", [3, 8])
def test_the_loss_is_minus_the_cross_entropy_of_the_quantized_student(subject, bits):
    found = quantized(weight_bits=bits, activation_bits=bits)
    student, numbers = against(found)
    attached = subject.objective(ALONE, student).attach(subject.model)
    x = images()
    outputs = run(attached, {"x": x, **numbers})
    expected = -entropy(run(found.baked, {"x": x})["y"], run(subject.model, {"x": x})["y"])
    assert outputs[term_name("adversarial")] == pytest.approx(expected, rel=1e-4)
    assert outputs[LOSS] == pytest.approx(2 * expected, rel=1e-4)


def test_gradients_are_those_of_finite_differences_where_the_student_is_smooth(subject):
    # Weights of 2 bits, so that it is another function than the network's.
    attached, values, fixed, gradients = gradients_of(
        subject, quantized(weight_bits=2, activation_bits=None)
    )
    rng = np.random.default_rng(4)
    for name, gradient in gradients.items():
        along = rng.standard_normal(values[name].shape, np.float32)
        along /= np.linalg.norm(along)
        up, down = (
            float(run(attached, {**fixed, **values, name: values[name] + s * along})[LOSS])
            for s in (np.float32(1e-2), np.float32(-1e-2))
        )
        size = float(np.linalg.norm(gradient))
        slope = float((gradient * along).sum())
        assert slope == pytest.approx((up - down) / 2e-2, abs=0.03 * size + 1e-3), name


def test_rounding_is_passed_straight_through(subject):
    # Rounding to 8 bits hardly changes the function: the surrogate's slope is the smooth one's.
    smooth = gradients_of(subject, quantized(weight_bits=2, activation_bits=None))[3]
    rounded = gradients_of(subject, quantized(weight_bits=2, activation_bits=8))[3]
    one, other = (np.concatenate([g.ravel() for g in each.values()]) for each in (smooth, rounded))
    assert np.linalg.norm(one - other) < 0.2 * np.linalg.norm(one)


def test_it_looks_for_images_on_which_student_and_network_differ(subject):
    # With the other sign it would look for those on which they agree.
    found = quantized(weight_bits=2, activation_bits=2)
    generator = Generator(subject.space, (4, 4), (4, 4))
    student, numbers = against(found)
    excess = []
    for weight in (0.0, 10.0):
        weights = {"inception": 1e-3, "adversarial": weight}
        objective = SynthesisObjective(weights, [], "y", student)
        parameters = generator.parameters(np.random.default_rng(0))
        descent = GeneratorDescent(subject.model, generator, objective, parameters, (0,))
        for _ in range(25):
            descent.step(16, 2, 0.02, numbers if weight else {})
        made = run(stand_alone(generator, parameters, 14), {NOISE: noise(64)})["x"]
        y, target = run(found.baked, {"x": made})["y"], run(subject.model, {"x": made})["y"]
        excess.append(entropy(y, target))
    without, sought = excess
    assert sought > without + 0.1


def made_with(subject: Subject, batch: int = 8) -> Synthesis:
    generator = size_generator(subject.space, 5)
    model = stand_alone(generator, generator.parameters(np.random.default_rng(5)), 14)
    model.metadata_props[METADATA_KEY] = f'{{"batch": {batch}}}'
    return Synthesis("generator", generator=model)


def test_the_parameters_are_read_back_from_the_file(subject):
    for shape in ((3, 8, 8), (3, 30, 44)):
        space = subject.space.__class__(**{**vars(subject.space), "shape": shape})
        generator = size_generator(space, 40)
        parameters = generator.parameters(np.random.default_rng(5))
        again, found = read_back(stand_alone(generator, parameters, 14), space)
        assert again == generator
        assert found.keys() == parameters.keys()
        for name, array in parameters.items():
            np.testing.assert_array_equal(found[name], array)
    with pytest.raises(ModelError, match="does not hold all its parameters"):
        read_back(stand_alone(generator, parameters, 14), subject.space)


def test_it_goes_on_from_a_state_and_stops_when_it_is_late(subject):
    found = quantized(weight_bits=3, activation_bits=3)
    numbers = found.student.feeds(found.qparams)

    def begun() -> tuple[AdversarialGenerator, Synthesis]:
        synthesis = made_with(subject)
        wanted = Task(20, {}, 0, 60.0, "generator", True)
        return AdversarialGenerator(subject, wanted, synthesis, found.student.model), synthesis

    (whole, told), (first, _), (second, retold) = begun(), begun(), begun()
    assert whole.text() == ""
    before = np.concatenate(list(whole.draw(20)))
    assert before.shape == (20, 3, 8, 8)
    # 20 images are two steps of 2 x 8.
    whole.learn(numbers, 20, lambda: False)
    drawn = np.concatenate(list(whole.draw(20)))
    np.testing.assert_array_equal(np.concatenate(list(whole.draw(20))), drawn)
    assert not np.array_equal(drawn, before)
    assert whole.text().startswith("generator inception -")
    whole.learn(numbers, 16, lambda: False)
    assert {kind: len(losses) for kind, losses in told.tuning.items()} == {
        "inception": 3, "bn": 3, "adversarial": 3
    }  # fmt: skip
    first.learn(numbers, 20, lambda: False)
    second.load_state(first.state())
    np.testing.assert_array_equal(np.concatenate(list(second.draw(20))), drawn)
    second.learn(numbers, 16, lambda: False)
    assert retold.tuning == told.tuning
    second.learn(numbers, 64, lambda: True)
    assert retold.tuning == told.tuning


def test_a_model_that_is_no_classifier_is_refused(subject):
    other = Subject(subject.model, subject.space, subject.batch_norms, None, 0, [])
    with pytest.raises(ModelError, match="compares the probabilities of a classifier"):
        check_adversarial(other, None)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"synthesis": "distilled"}, "needs 'synthesis' = 'generator'"),
        ({"learn": ("none",)}, "'learn' is 'none'; learn 'steps' or 'weights'"),
        ({"learn": ("rounding",)}, "'learn' is 'rounding'; learn 'steps' or 'weights'"),
        ({"synthesis_losses": {"adversarial": 0}}, "contradict each other"),
        ({"data_free": False, "synthesis": "auto"}, "needs 'data_free'"),
        ({"generator_mode": "free"}, "expected 'fixed' or 'adversarial'"),
    ],
)
def test_what_can_not_go_together_is_one_sentence(options, sentence):
    given = {"data_free": True, "synthesis": "generator", "generator_mode": "adversarial"}
    with pytest.raises(RecipeError, match=sentence):
        Recipe(**(given | options))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesise, "STEPS", 6)
    monkeypatch.setattr(subject_module, "BATCH", 8)
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)


class Stop:
    """Stops the run in the middle of an epoch."""

    def __init__(self, at: int) -> None:
        self._at, self._learning = at, False
        self.texts: list[str] = []

    def start(self, stage: str, total: int) -> None:
        self._learning = stage == "learn"

    def at(self, done: int, text: str = "") -> None:
        self.texts.append(text)
        if self._learning and done > self._at:
            raise KeyboardInterrupt

    def finish(self) -> None:
        pass


def test_a_run_is_the_same_again_resumed_or_from_the_file(few, sample_models, tmp_path):
    model, kept = sample_models / "digits_mlp.onnx", tmp_path / "g.onnx"
    options = {
        "data_free": True, "synthesis": "generator", "samples": 96, "batch_size": 4, "epochs": 3,
        "learn": ("steps",), "weight_bits": 4, "activation_bits": 4, "augment": ("shift",),
    }  # fmt: skip
    recipe = Recipe(generator_mode="adversarial", **options)
    whole, again = tmp_path / "whole.onnx", tmp_path / "again.onnx"
    listener = Stop(10**9)
    first = compress(model, recipe=recipe, out=whole, save_generator=kept, progress=listener)
    assert any("; generator inception -" in text for text in listener.texts)
    assert len(first.synthesis.tuning["adversarial"]) >= 3
    assert first.metrics.synthesis["tuning"] == first.synthesis.tuning
    # The saved generator is the one that the images were made with first.
    compress(model, recipe=recipe, out=again, generator=kept)
    assert again.read_bytes() == whole.read_bytes()
    # In the second epoch, whose fresh images are there already.
    stopped = tmp_path / "stopped.onnx"
    with pytest.raises(KeyboardInterrupt):
        compress(model, recipe=recipe, out=stopped, progress=Stop(64 + 16))
    with np.load(tmp_path / "stopped.onnx.onnxq-checkpoint" / "state.npz") as state:
        _, epoch, step, *_ = state["state/numbers"]
        assert epoch == 1 and step > 0
    with pytest.raises(OutputError, match=r"of another run .different: generator"):
        compress(model, recipe=recipe, out=stopped, generator=kept, resume=True)
    resumed = compress(model, recipe=recipe, out=stopped, resume=True)
    assert stopped.read_bytes() == whole.read_bytes()
    assert resumed.synthesis.tuning == first.synthesis.tuning
    fixed = compress(model, recipe=Recipe(**options))
    assert fixed.synthesis.tuning == {}
    assert fixed.metrics.learning["scores"] != first.metrics.learning["scores"]
    assert fixed.metrics.learning["start_score"] == first.metrics.learning["start_score"]


def test_where_nothing_is_learned_by_gradients_it_is_said(few, sample_models, monkeypatch):
    monkeypatch.setattr(adversarial, "RATE", 0.0)
    recipe = Recipe(
        data_free=True, synthesis="generator", generator_mode="adversarial", samples=16,
        weight_bits=6, activation_bits=6, max_minutes=1.0,
    )  # fmt: skip
    result = compress(sample_models / "digits_mlp.onnx", recipe=recipe)
    assert any("was not trained with the student" in note for note in result.notes)
