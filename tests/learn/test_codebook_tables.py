"""Centroids as trained values: their chain rule, and a run that learns them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import images, quantize, run, small_graph, tables

from onnxq.learn.codebooks import SCALE, TABLE, CodebookTables
from onnxq.options.recipe import Recipe
from onnxq.pipeline import compress
from onnxq.plan import planner
from onnxq.student.qparams import fake_weight

FLOAT = {"activation_bits": None}


@pytest.fixture(autouse=True)
def always(monkeypatch) -> None:
    """A codebook for every layer, small ones too."""
    monkeypatch.setattr(planner, "codebook_refusal", lambda *args, **more: "")


@pytest.mark.parametrize("setting", [FLOAT, {**FLOAT, "granularity": "per-tensor"}, {}])
def test_at_the_start_the_values_stand_for_the_codebooks(setting):
    made = quantize(small_graph("residual"), recipe=Recipe(codebook=6, **setting))
    tables = CodebookTables(made.plan, made.qparams)
    for weight, book in tables.qparams(made.qparams).codebooks.items():
        expected = made.qparams.codebooks[weight]
        assert book.centroids.dtype == expected.centroids.dtype
        np.testing.assert_allclose(book.centroids, expected.centroids, rtol=1e-6)
        np.testing.assert_array_equal(book.indices, expected.indices)


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
def test_the_gradient_is_that_of_finite_differences(granularity):
    recipe = Recipe(codebook=5, activation_bits=None, granularity=granularity)
    made = quantize(small_graph("residual"), recipe=recipe)
    tables = CodebookTables(made.plan, made.qparams)
    rng = np.random.default_rng(0)
    slopes = {w: rng.normal(size=a.shape) for w, a in made.qparams.weights.items()}

    def loss() -> float:
        found = tables.qparams(made.qparams)
        return sum(
            float((slopes[s.weight] * fake_weight(s, found, found.codebooks[s.weight].scale)).sum())
            for s in made.plan.layers.values()
        )

    found = {w: s.astype(np.float32) for w, s in slopes.items()}
    gradients = tables.gradients(found, made.qparams)
    assert gradients.keys() == tables.values.keys()
    for key, value in tables.values.items():
        for k in np.ndindex(value.shape):
            kept, step = value[k], np.float32(0.05)
            value[k] = kept + step
            above = loss()
            value[k] = kept - step
            slope = (above - loss()) / (2 * step)
            value[k] = kept
            assert gradients[key][k] == pytest.approx(slope, rel=1e-3, abs=1e-3)


def test_int8_codes_stay_in_their_range():
    made = quantize(small_graph("residual"), recipe=Recipe(codebook=6))
    tables = CodebookTables(made.plan, made.qparams)
    key = next(key for key in tables.values if key.startswith(TABLE))
    tables.values[key] += 2
    tables.project()
    book = tables.qparams(made.qparams).codebooks[key.removeprefix(TABLE)]
    assert book.centroids.dtype == np.int8 and (book.centroids == 127).all()


def test_scales_stay_positive():
    made = quantize(small_graph("residual"), recipe=Recipe(codebook=6))
    tables = CodebookTables(made.plan, made.qparams)
    key = next(key for key in tables.values if key.startswith(SCALE))
    tables.values[key][...] = -1
    tables.project()
    book = tables.qparams(made.qparams).codebooks[key.removeprefix(SCALE)]
    assert (book.scale > 0).all()


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path, Path]:
    ir.save(small_graph("residual"), tmp_path / "model.onnx")
    np.savez(tmp_path / "x.npz", x=images(128))
    return tmp_path / "model.onnx", tmp_path / "x.npz", tmp_path / "out.onnx"


@pytest.mark.parametrize("setting", [FLOAT, {}])
def test_learning_lowers_the_held_back_error_and_exports_what_it_found(files, setting):
    model, data, out = files
    recipe = Recipe(codebook=4, learn=("codebooks",), epochs=8, batch_size=8, lr=0.01, **setting)
    result = compress(model, data, recipe, out=out)
    learning = result.metrics.learning
    assert learning["learned_score"] < 0.95 * learning["start_score"]
    assert result.metrics.student_agreement == 1.0
    feeds = {"x": images(8, seed=5)}
    np.testing.assert_array_equal(run(ir.load(out), feeds)["y"], run(result.model, feeds)["y"])


def test_thresholds_alone_leave_the_centroids(files):
    model, data, _ = files
    quick = {"codebook": 4, "epochs": 2, "batch_size": 8}
    kept = compress(model, data, Recipe(codebook=4, learn=("none",), batch_size=8))
    found = compress(model, data, Recipe(**quick, learn=("thresholds",)))
    before, after = tables(kept.model), tables(found.model)
    assert before and before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


def test_the_trained_weights_are_fed_to_the_student():
    made = quantize(small_graph("residual"), recipe=Recipe(codebook=6, activation_bits=None))
    tables = CodebookTables(made.plan, made.qparams)
    weight = tables.parameter_names()[0]
    tables.values[TABLE + weight] *= np.float32(1.5)
    found = tables.qparams(made.qparams)
    before, after = (made.student.feeds(q) for q in (made.qparams, found))
    np.testing.assert_allclose(after[weight], 1.5 * before[weight], rtol=1e-5)
