"""The main job on small models, from file to file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_graphs import BODIES, HEAD, compress, image_graph, small_graph

from onnxq.engine import resolve_engine
from onnxq.errors import ModelError, OutputError, RecipeError
from onnxq.learn.train import Learning
from onnxq.options.recipe import Recipe
from onnxq.pipeline import plan_model
from onnxq.plan import planner
from onnxq.progress import Silent
from onnxq.runtime.clock import TIME_RAN_OUT
from onnxq.train import checkpoint
from onnxq.train.held_out import Learned
from onnxq.verify.kernels import INTEGER_KERNELS
from onnxq.verify.metrics import METADATA_KEY

QUICK = Recipe(epochs=2, batch_size=8)


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path, Path]:
    """A model, its samples, and the output that is to be made."""
    ir.save(small_graph("residual"), tmp_path / "model.onnx")
    x = np.random.default_rng(0).normal(size=(48, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    return tmp_path / "model.onnx", tmp_path / "x.npz", tmp_path / "out.onnx"


def test_the_file_is_the_model_of_the_result(files):
    model, data, out = files
    before = model.read_bytes()
    result = compress(model, data, QUICK, out=out)
    assert result.path == out
    assert model.read_bytes() == before
    onnx.checker.check_model(str(out), full_check=True)
    assert out.stat().st_size == result.metrics.size_after
    assert result.metrics.integer_layers == len(result.plan.integer_layers()) == 3
    assert result.metrics.agreement is not None
    assert result.metrics.student_agreement == 1.0
    assert (result.metrics.samples, result.metrics.held_back) == (48, 24)
    # No checkpoint and no other file stays behind.
    assert sorted(p.name for p in out.parent.iterdir()) == ["model.onnx", "out.onnx", "x.npz"]


def test_metadata_says_how_it_was_made(files):
    model, data, out = files
    compress(model, data, QUICK, out=out)
    found = ir.load(out).metadata_props
    assert Recipe.from_json(found["onnxq.recipe"]) == QUICK
    assert "latency" not in found[METADATA_KEY]
    assert found["onnxq.version"]


def test_inputs_and_outputs_keep_their_names(files):
    model, data, out = files
    compress(model, data, QUICK, out=out)
    original, made = ir.load(model).graph, ir.load(out).graph
    assert [v.name for v in made.inputs] == [v.name for v in original.inputs]
    assert [v.name for v in made.outputs] == [v.name for v in original.outputs]


def test_a_run_without_time_leaves_out_what_it_can_and_says_so(files, monkeypatch):
    model, data, out = files
    monkeypatch.setattr("onnxq.runtime.clock.LEAST_SAMPLES", 16)
    recipe = Recipe(batch_size=8, max_minutes=1e-6)
    metrics = compress(model, data, recipe, out=out).metrics
    assert metrics.samples == 16 and not metrics.learning["epochs_run"]
    for what in ("32 of 48 samples", "learning of thresholds", "learning of rounding"):
        assert what in metrics.verdict
    assert metrics.verdict.startswith(TIME_RAN_OUT)
    # A run that has the time says nothing of it.
    assert not compress(model, data, QUICK).metrics.verdict


@pytest.mark.parametrize("cores", [1, 2])
def test_the_same_seed_gives_the_same_bytes_on_any_number_of_cores(files, monkeypatch, cores):
    model, data, out = files
    first = compress(model, data, QUICK, out=out)
    monkeypatch.setattr("onnxq.runtime.session.available_cores", lambda: cores)
    monkeypatch.setattr("onnxq.engine.engine.available_cores", lambda: cores)
    other = out.with_name("other.onnx")
    compress(model, data, QUICK, out=other)
    assert other.read_bytes() == out.read_bytes()
    # Two epochs of thresholds, and rounding.
    assert len(first.metrics.learning["scores"]) == 3


class Stop(Silent):
    """Stops in the second epoch of learning."""

    def __init__(self) -> None:
        self.learning = False

    def start(self, stage: str, total: int) -> None:
        self.learning = stage.startswith("learn")

    def at(self, done: int, text: str = "") -> None:
        if self.learning and done > 24:
            raise KeyboardInterrupt


def test_a_stopped_run_is_resumed_to_the_same_bytes(files):
    model, data, out = files
    compress(model, data, QUICK, out=out)
    stopped = out.with_name("stopped.onnx")
    with pytest.raises(KeyboardInterrupt):
        compress(model, data, QUICK, out=stopped, progress=Stop())
    assert not stopped.exists()
    state = stopped.with_name("stopped.onnx.onnxq-checkpoint")
    assert state.is_dir()
    compress(model, data, QUICK, out=stopped, resume=True)
    assert stopped.read_bytes() == out.read_bytes()
    assert not state.exists()


def test_a_checkpoint_of_another_recipe_is_refused(files):
    model, data, out = files
    with pytest.raises(KeyboardInterrupt):
        compress(model, data, QUICK, out=out, progress=Stop())
    with pytest.raises(OutputError, match=r"of another run .different: recipe"):
        compress(model, data, Recipe(epochs=3, batch_size=8), out=out, resume=True)


def test_a_checkpoint_of_another_engine_is_refused(files, monkeypatch):
    model, data, out = files
    with pytest.raises(KeyboardInterrupt):
        compress(model, data, QUICK, out=out, progress=Stop())
    other = {"onnx": "ort-training", "ort-training": "onnx"}[resolve_engine()]
    monkeypatch.setattr(checkpoint, "resolve_engine", lambda engine: other)
    with pytest.raises(OutputError, match=r"of another run .different: engine."):
        compress(model, data, QUICK, out=out, resume=True)


def test_the_engine_stands_in_the_metadata_where_gradients_are_used(files):
    model, data, out = files
    found = compress(model, data, replace(QUICK, engine="onnx"), out=out)
    assert found.metrics.engine == "onnx"
    assert json.loads(ir.load(out).metadata_props["onnxq.recipe"])["engine"] == "onnx"
    plain = compress(model, data, replace(QUICK, learn=("rounding",)))
    assert plain.metrics.engine == ""
    found = compress(model, data, QUICK)
    assert found.metrics.engine == resolve_engine()


def test_a_learning_rate_that_is_too_high_is_said(files):
    model, data, _ = files
    result = compress(model, data, replace(QUICK, lr=1.0))
    assert any("try a smaller --lr" in note for note in result.notes)


def test_learning_that_does_not_help_is_said(files, monkeypatch):
    model, data, _ = files

    def nothing(self: Learning, *_: object) -> Learned:
        return replace(self._result, history=[self._result.start_score])

    monkeypatch.setattr(Learning, "run", nothing)
    result = compress(model, data, QUICK)
    assert any(note.endswith("which is kept") for note in result.notes)
    assert result.metrics.learning["epoch"] == 0


def test_without_learning_the_calibrated_numbers_are_exported(files):
    model, data, _ = files
    result = compress(model, data, Recipe(learn=("none",)))
    assert result.path is None
    assert result.metrics.learning["epochs_run"] == 0


def test_a_model_without_a_gradient_is_calibrated_and_says_so(tmp_path):
    body = (
        "a = Conv <pads = [1, 1, 1, 1]> (x, wx, bx) r = Relu (a) "
        f"p = LpNormalization <axis = 1> (r) z = Conv (p, v6, c6) {HEAD}"
    )
    ir.save(image_graph(body), tmp_path / "model.onnx")
    x = np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    result = compress(tmp_path / "model.onnx", tmp_path / "x.npz", QUICK)
    assert any("calibrated but not learned: 'LpNorm" in note for note in result.notes)


@pytest.mark.parametrize("force", [False, True])
def test_the_output_is_checked_before_the_work(files, force):
    model, data, _ = files
    before = model.read_bytes()
    with pytest.raises(OutputError, match="is the model itself"):
        compress(model, data, QUICK, out=model, force=force)
    assert model.read_bytes() == before


def test_an_existing_output_needs_force(files):
    model, data, out = files
    out.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        compress(model, data, QUICK, out=out)
    assert out.read_bytes() == b"mine"
    compress(model, data, QUICK, out=out, force=True)
    assert out.stat().st_size > 1000


def test_a_model_with_nothing_to_quantize_is_refused(tmp_path):
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 13]> '
        "g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { y = Relu (x) }"
    )
    ir.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 3, 8, 8), np.float32))
    with pytest.raises(ModelError, match="nothing to quantize"):
        compress(tmp_path / "model.onnx", tmp_path / "x.npz", QUICK, out=tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_planning_runs_and_writes_nothing(files):
    model, _, out = files
    report = plan_model(model, allow_worse=True)
    assert len(report.plan.layers) == 3
    assert not out.exists()


def test_a_single_sample_is_enough(tmp_path):
    ir.save(small_graph("relu"), tmp_path / "model.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((1, 3, 8, 8), np.float32))
    assert compress(tmp_path / "model.onnx", tmp_path / "x.npz", QUICK).metrics.samples == 1


@pytest.mark.parametrize("activation_bits", [8, None])
def test_a_model_of_fixed_batch_goes_through(tmp_path, activation_bits):
    text = (
        '<ir_version: 8, opset_import: ["" : 13]> g (float[1, 8] x) => (float[2, 4] y) '
        "{ a = MatMul (x, w) r = Relu (a) y = Reshape (r, s) }"
    )
    rng = np.random.default_rng(0)
    tensors = [
        ir.tensor(rng.normal(size=(8, 8)).astype(np.float32), name="w"),
        ir.tensor(np.array([2, 4]), name="s"),
    ]
    ir.save(ir.from_onnx_text(text, initializers=tensors), tmp_path / "model.onnx")
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(20, 8)).astype(np.float32))
    recipe = Recipe(epochs=1, activation_bits=activation_bits)
    metrics = compress(tmp_path / "model.onnx", tmp_path / "x.npz", recipe).metrics
    assert metrics.sqnr_db["y"] > 25


@pytest.mark.parametrize("name", ["excite", "shuffle", "split", "transposed", "hard_swish"])
def test_forms_go_through_the_whole_line(tmp_path, name):
    assert name in BODIES
    ir.save(small_graph(name), tmp_path / "model.onnx")
    x = np.random.default_rng(0).normal(size=(32, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    result = compress(tmp_path / "model.onnx", tmp_path / "x.npz", Recipe(epochs=1))
    assert result.metrics.sqnr_db["y"] > 25
    assert result.metrics.student_agreement == 1.0
    kernels = result.metrics.kernels
    assert all(kernels[s.name] in INTEGER_KERNELS for s in result.plan.integer_layers())


@pytest.mark.parametrize("activation_bits", [8, None])
def test_float_layers_are_retrained_around_the_quantized_ones(files, activation_bits, monkeypatch):
    monkeypatch.setattr(planner, "codebook_refusal", lambda *args, **more: "")
    model, data, out = files
    recipe = Recipe(
        learn=("float-layers",),
        exclude=("Gemm", "Conv_c"),
        activation_bits=activation_bits,
        codebook=4,
        lr=0.02,
        batch_size=8,
        epochs=8,
    )
    result = compress(model, data, recipe, out=out)
    learning = result.metrics.learning
    assert learning["learned_score"] < 0.9 * learning["start_score"]
    assert result.metrics.student_agreement == 1.0
    assert set(result.metrics.left_alone.values()) == {"it is excluded by the recipe; retrained"}
    made, original = ir.load(out).graph, ir.load(model).graph
    for name in ("wh", "v6"):
        before, after = (g.initializers[name].const_value.numpy() for g in (original, made))
        assert before.dtype == after.dtype == np.float32
        assert 0 < np.abs(before - after).max() < np.abs(before).max()
    stopped = out.with_name("stopped.onnx")
    with pytest.raises(KeyboardInterrupt):
        compress(model, data, recipe, out=stopped, progress=Stop())
    compress(model, data, recipe, out=stopped, resume=True)
    assert stopped.read_bytes() == out.read_bytes()


def test_without_float_layers_to_retrain_the_flag_is_named(files):
    model, data, _ = files
    for run in (plan_model, lambda m, r: compress(m, data, r)):
        with pytest.raises(RecipeError, match="--exclude"):
            run(model, Recipe(learn=("float-layers",)))


def test_a_search_chooses_the_float_layers_later(files):
    plan = plan_model(files[0], Recipe(learn=("float-layers",), codebook="auto")).plan
    assert plan.layers and not plan.float_layers
