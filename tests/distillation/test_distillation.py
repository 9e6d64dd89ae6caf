"""Runs of distillation, from files to a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxq
from onnxq import DataError, ModelError, OutputError, Recipe, RecipeError, WorseError
from onnxq.distillation.distillation import NO_CLASSIFIER, NO_GAIN, distill
from onnxq.distillation.result import METADATA_KEY, DistillMetrics, DistillResult
from onnxq.distillation.stage import find_fault, names_budget
from onnxq.progress import Silent
from onnxq.train import loop
from tests.distillation.float_students import (
    PLAIN,
    PLAIN_WEIGHTS,
    STUDENT,
    STUDENT_WEIGHTS,
    images,
    plain,
    write_all,
)
from tests.small_graphs import build, run, serialised

RECIPE = Recipe(epochs=20, batch_size=8, lr=0.02)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path, Path]:
    return write_all(tmp_path_factory.mktemp("distil"))


@pytest.fixture(scope="module")
def distilled(files) -> DistillResult:
    return distill(*files, RECIPE)


def test_the_student_comes_nearer_to_its_teacher(files, distilled):
    metrics = distilled.metrics
    assert metrics.score < 0.7 * metrics.start_score
    assert metrics.epoch > 0 and metrics.score == pytest.approx(min(metrics.scores), rel=1e-5)
    assert (metrics.samples, metrics.held_back) == (160, 64)
    model = distilled.model
    assert [v.name for v in model.graph.inputs] == ["image"]
    assert [v.name for v in model.graph.outputs] == ["scores"]
    assert sum(node.op_type == "BatchNormalization" for node in model.graph) == 2
    assert METADATA_KEY in model.metadata_props
    assert onnxq.distill is distill


def test_the_score_is_that_of_the_file_in_onnxruntime(files, tmp_path):
    out = tmp_path / "o.onnx"
    result = distill(*files, Recipe(epochs=3, samples=100, loss="distillation"), out=out)
    onnx.checker.check_model(onnx.load(out), full_check=True)
    assert out.stat().st_size == result.metrics.student_bytes
    assert files[0].stat().st_size == result.metrics.teacher_bytes
    x = images()
    theirs, mine = run(files[0], {"x": x})["y"], run(out, {"image": x})["scores"]
    assert theirs.shape == mine.shape
    # Those held out are among all; both are about as near.
    agreement = (theirs.argmax(1) == mine.argmax(1)).mean()
    assert agreement == pytest.approx(result.metrics.agreement, abs=0.2)
    assert result.metrics.unit == "KL divergence"


def test_same_seed_same_bytes_and_another_one_others(files, distilled):
    again = distill(*files, RECIPE)
    assert serialised(again.model) == serialised(distilled.model)
    other = distill(*files, replace(RECIPE, seed=1))
    assert other.metrics.scores != distilled.metrics.scores


@pytest.mark.parametrize("cores", [1, 3])
def test_cores_change_no_byte(files, distilled, monkeypatch, cores):
    for module in ("runtime.session", "engine.engine"):
        monkeypatch.setattr(f"onnxq.{module}.available_cores", lambda: cores)
    assert serialised(distill(*files, RECIPE).model) == serialised(distilled.model)


def test_random_weights_are_drawn_anew(files, distilled):
    found = distill(*files, RECIPE, init="random")
    assert found.metrics.start_score != distilled.metrics.start_score
    assert found.metrics.score < found.metrics.start_score


class Stop(Silent):
    """Stops the run after some steps, as Ctrl-C does."""

    def __init__(self, steps: int) -> None:
        self.steps, self.learns = steps, False

    def start(self, stage: str, total: int) -> None:
        self.learns = stage == "learn"

    def at(self, done: int, text: str = "") -> None:
        self.steps -= self.learns
        if self.steps < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("steps", [2, 17])
def test_a_stopped_run_goes_on_to_the_same_bytes(files, tmp_path, monkeypatch, steps):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    options = {"recipe": Recipe(epochs=8, batch_size=8, augment=("flip", "shift"))}
    whole, stopped = tmp_path / "whole.onnx", tmp_path / "stopped.onnx"
    layout = onnxq.Preprocess((0.5,), (0.2,))
    distill(*files, **options, out=whole, preprocess=layout)
    with pytest.raises(KeyboardInterrupt):
        distill(*files, **options, out=stopped, preprocess=layout, progress=Stop(steps))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "stopped.onnx.onnxq-checkpoint",
        "whole.onnx",
    ]
    with pytest.raises(OutputError, match="different: init"):
        distill(*files, **options, out=stopped, preprocess=layout, resume=True, init="random")
    distill(*files, **options, out=stopped, preprocess=layout, resume=True)
    assert stopped.read_bytes() == whole.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_student_that_is_as_good_is_kept_as_it_is(files, tmp_path):
    # The teacher itself, under its own name.
    result = distill(files[0], files[0], files[2], Recipe(epochs=2))
    assert NO_GAIN in result.notes
    assert result.metrics.epoch == 0
    assert max(result.metrics.score, result.metrics.start_score) < 1e-6
    assert result.metrics.agreement == 1
    found = run(result.model, {"x": images(4)})["y"]
    np.testing.assert_array_equal(found, run(files[0], {"x": images(4)})["y"])


def test_a_broken_student_is_written_only_where_that_is_allowed(files, tmp_path, monkeypatch):
    out = tmp_path / "o.onnx"
    options = {"recipe": Recipe(epochs=1, lr=1e-9), "init": "random", "out": out}
    written = distill(*files, **options).notes[-1]
    assert "the student is broken: it decides as the teacher on" in written
    out.unlink()
    monkeypatch.setattr("onnxq.distillation.distillation.names_budget", lambda _: False)
    with pytest.raises(WorseError, match=r"nothing was written.*--allow-worse"):
        distill(*files, **options)
    assert not out.exists()
    assert distill(*files, **options, allow_worse=True, resume=True).notes[-1] == written
    assert [path.name for path in tmp_path.iterdir()] == ["o.onnx"]


def test_what_a_broken_student_is():
    metrics = DistillMetrics(2, 1, 3, "error", 1.0, 0.9, None, 0.5, 1, held_back=64)
    assert find_fault(metrics) is None
    assert "49.0% of 64 held-out samples, under 50%" in find_fault(replace(metrics, agreement=0.49))
    metrics = replace(metrics, agreement=None)
    assert "is 90% of the teacher's, over 70%" in find_fault(metrics)
    assert find_fault(replace(metrics, score=0.6)) is None
    assert "not finite" in find_fault(replace(metrics, score=None))
    assert names_budget(Recipe(epochs=2)) and not names_budget(Recipe(seed=2))


def test_a_student_without_batch_normalization_learns(files, tmp_path):
    ir.save(plain(), tmp_path / "s.onnx")
    result = distill(files[0], tmp_path / "s.onnx", files[2], RECIPE)
    assert result.metrics.score < result.metrics.start_score
    assert result.metrics.parameters == 72 * 8 + 8 + 8 * 4


@pytest.mark.parametrize(
    "pairs",
    [
        [("[N, 2, 6, 6]", "[3, 2, 6, 6]"), ("[N, 4]", "[3, 4]")],
        [("scores = Gemm", "l = Gemm"), ("(f, h, k)", "(f, h, k) scores = Softmax (l)")],
        [("Conv <pads = [1, 1, 1, 1]> (r", "ConvTranspose <pads = [1, 1, 1, 1]> (r")],
    ],
)
def test_other_forms_of_a_student_learn_as_well(files, tmp_path, pairs):
    ir.save(changed(STUDENT, STUDENT_WEIGHTS, *pairs), tmp_path / "s.onnx")
    result = distill(files[0], tmp_path / "s.onnx", files[2], replace(RECIPE, epochs=3))
    assert result.metrics.score < result.metrics.start_score


def test_outputs_that_are_no_decisions_are_matched(files, tmp_path):
    text = PLAIN.replace("float[N, 4] y", "float[N, 2, 6, 6] y")
    text = text.replace("y = MatMul (r, u)", "t = MatMul (r, u) y = Reshape (t, k)")
    weights = {**PLAIN_WEIGHTS, "u": (8, 72), "k": np.array([-1, 2, 6, 6])}
    ir.save(build(text, weights), tmp_path / "t.onnx")
    result = distill(
        tmp_path / "t.onnx", tmp_path / "t.onnx", files[2],
        Recipe(epochs=2, loss="distillation"), init="random",
    )  # fmt: skip
    assert NO_CLASSIFIER in result.notes
    assert result.metrics.unit == "error" and result.metrics.agreement is None


def changed(text: str, weights: dict, *pairs: tuple[str, str]) -> ir.Model:
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return build(text, weights)


REFUSED = {
    "takes": (
        changed(STUDENT, STUDENT_WEIGHTS, ("[N, 2, 6, 6]", "[N, 2, 7, 7]")),
        r"takes 'image' float32 \(N, 2, 7, 7\) and the teacher 'x' float32 \(N, 2, 6, 6\)",
    ),
    "gives": (
        changed(PLAIN, {**PLAIN_WEIGHTS, "u": (8, 3)}, ("float[N, 4] y", "float[N, 3] y")),
        r"'y' is of shape \(2, 3\) where the teacher's 'y' is of shape \(2, 4\)",
    ),
    "count": (
        changed(PLAIN, PLAIN_WEIGHTS, ("(float[N, 4] y)", "(float[N, 4] y, float[N, 8] r)")),
        "has 2 float outputs and the teacher 1",
    ),
    "inputs": (
        changed(PLAIN, PLAIN_WEIGHTS, ("6] x)", "6] x, float[N, 8] z)"), ("Relu (q", "Add (q, z")),
        "several inputs go together by their names",
    ),
    "gradient": (
        changed(PLAIN, PLAIN_WEIGHTS, ("Relu", "Hardmax")),
        "No gradient passes the student's node",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_a_student_that_does_not_fit_is_refused_in_a_sentence(files, tmp_path, case):
    model, sentence = REFUSED[case]
    ir.save(model, tmp_path / "s.onnx")
    with pytest.raises(ModelError, match=sentence) as found:
        distill(files[0], tmp_path / "s.onnx", files[2], out=tmp_path / "o.onnx")
    assert "\n" not in str(found.value)
    assert [path.name for path in tmp_path.iterdir()] == ["s.onnx"]


@pytest.mark.parametrize(
    ("recipe", "options", "sentence"),
    [
        (Recipe(weight_bits=4), {}, "'weight_bits' = '4' has no part in distillation"),
        (Recipe(optimizer="sgd"), {}, "'optimizer' = 'sgd' has no part"),
        (Recipe(lr={"weights": 0.1}), {}, "one rate for all"),
        (Recipe(), {"init": "zero"}, "expected file or random"),
        (Recipe(), {"save_generator": "g"}, "add --data-free"),
        (Recipe(data_free=True), {}, "leave out --data or --data-free"),
    ],
)
def test_options_without_a_part_are_refused(files, recipe, options, sentence):
    with pytest.raises(RecipeError, match=sentence):
        distill(*files, recipe, **options)


def test_data_that_do_not_fit_are_refused(files, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.ones((4, 3), np.float32))
    with pytest.raises(DataError):
        distill(*files[:2], tmp_path / "x.npz")
