"""The search from file to file: targets are kept, misses are said, results can be repeated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_graphs import HEAD, image_graph, tables

from onnxq.errors import RecipeError
from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.pipeline import Result, compress
from onnxq.search.evaluator import ModelEvaluator, TrialCache

BODY = "a = Conv <pads = [5, 5, 5, 5]> (x, first, b6) r = Relu (a) z = Conv (r, second, c6)"
FAST = Recipe(epochs=1, batch_size=8, activation_bits=None)


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path, Path]:
    """A model with two layers large enough for codebooks, samples, and the output."""
    rng = np.random.default_rng(0)
    first = rng.normal(0, 0.05, (6, 3, 11, 11)).astype(np.float32)
    second = rng.normal(0, 0.1, (6, 6, 8, 8)).astype(np.float32)
    ir.save(image_graph(f"{BODY} {HEAD}", first=first, second=second), tmp_path / "model.onnx")
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(96, 3, 8, 8)).astype(np.float32))
    return tmp_path / "model.onnx", tmp_path / "x.npz", tmp_path / "out.onnx"


@pytest.mark.parametrize("codebook", ["auto", None])
@pytest.mark.parametrize("bits", [8, None])
def test_a_size_is_kept(files, bits, codebook):
    model, data, out = files
    recipe = replace(FAST, activation_bits=bits, codebook=codebook, max_size=0.34)
    result = compress(model, data, recipe, out=out)
    onnx.checker.check_model(str(out), full_check=True)
    assert out.stat().st_size <= 0.34 * model.stat().st_size
    assert result.metrics.search["met"] and result.metrics.student_agreement == 1.0
    smaller = compress(model, data, replace(recipe, max_size=0.28), out=out, force=True)
    assert smaller.metrics.size_after < result.metrics.size_after
    # Small files of weights: a whole number is a number of bytes.
    again = compress(model, data, replace(recipe, max_size=result.metrics.size_after + 2000))
    assert again.metrics.size_after <= result.metrics.size_after + 2000


def test_without_codebooks_widths_are_searched(files):
    model, data, _ = files
    found = compress(model, data, replace(FAST, max_size=0.3, first_last_bits=8))
    sizes = {row.name: row for row in found.plan.layers.values()}
    labels = found.metrics.search["settings"]
    assert all(label == "float" or label.endswith(" bits") for label in labels.values())
    # Stated: no search moves it.
    assert sizes["Conv_a"].num_bits == 8 and "Conv_a" not in labels
    assert sizes["Conv_z"].num_bits < 8 and sizes["Conv_z"].packed


def test_codes_and_codebooks_are_candidates_of_one_search(files):
    model, data, _ = files
    found = compress(model, data, replace(FAST, codebook="auto", max_size=0.3))
    for row in found.metrics.search["sweep"]["layers"][:2]:
        labels = {each["setting"] for each in row["settings"]}
        assert {"K=16", "4 bits", "8 bits", "float"} <= labels
    alone = compress(model, data, replace(FAST, max_size=0.3))
    assert both_errors(found) <= both_errors(alone)


def both_errors(result: Result) -> float:
    return float(result.metrics.search["trials"][-1]["predicted"])


def test_nothing_to_search_is_a_sentence(files):
    model, data, out = files
    recipe = replace(FAST, max_drop=1.0, layers=(LayerOverride("*", weight_bits=6),))
    with pytest.raises(RecipeError, match="states the bits or the codebook of every layer"):
        compress(model, data, recipe, out=out)
    assert not out.exists()


def test_a_drop_is_kept_and_a_looser_one_takes_fewer_bytes(files):
    model, data, _ = files
    sizes = []
    for most in (0.05, 3.0):
        metrics = compress(model, data, replace(FAST, max_drop=most)).metrics
        assert metrics.search["met"] and metrics.estimated_drop <= most
        sizes.append(metrics.size_after)
    assert sizes[1] < sizes[0]


def test_the_recipe_that_was_found_gives_the_same_model(files):
    model, data, out = files
    found = compress(model, data, replace(FAST, codebook="auto", max_drop=2.0), out=out)
    first = out.read_bytes()
    assert not found.recipe.searches and found.recipe.layers
    compress(model, data, replace(FAST, codebook="auto", max_drop=2.0), out=out, force=True)
    assert out.read_bytes() == first
    again = tables(compress(model, data, replace(found.recipe, samples=96)).model)
    assert tables(found.model) and tables(found.model).keys() == again.keys()


def test_what_cannot_be_met_is_said_and_the_nearest_is_written(files):
    model, data, out = files
    result = compress(model, data, replace(FAST, max_size=2600), out=out)
    assert out.exists() and not result.metrics.search["met"]
    note = next(each for each in result.notes if "was not met" in each)
    assert note.startswith("the target of 2,600 bytes was not met: the smallest file has ")
    out.unlink()
    with pytest.raises(RecipeError, match=r"asks for 900 bytes, and without its weights the file"):
        compress(model, data, replace(FAST, max_size=900), out=out)
    assert not out.exists() and sorted(p.name for p in out.parent.iterdir()) == [
        "model.onnx",
        "x.npz",
    ]


def test_layers_with_a_stated_codebook_are_left_to_the_user(files):
    model, data, _ = files
    layers = ({"pattern": "Conv_a", "codebook": 32},)
    recipe = Recipe.from_json(
        json.dumps(json.loads(FAST.to_json()) | {"codebook": "auto", "layers": layers})
    )
    result = compress(model, data, replace(recipe, max_drop=3.0))
    assert result.plan.layers["Conv_a"].codebook == 32
    assert "Conv_a" not in result.metrics.search["settings"]


@pytest.mark.parametrize(("codebook", "most"), [("auto", 1.0), (None, 0.05)])
def test_a_stopped_search_goes_on_where_it_was(files, monkeypatch, codebook, most):
    model, data, out = files
    recipe = replace(FAST, codebook=codebook, max_drop=most)
    compress(model, data, recipe, out=out)
    whole = out.read_bytes()
    out.unlink()
    trials = []

    def stopped(self, settings):
        if len(trials) == 2:
            raise KeyboardInterrupt
        trials.append(settings)
        return tried(self, settings)

    tried = ModelEvaluator._trial
    monkeypatch.setattr(ModelEvaluator, "_trial", stopped)
    with pytest.raises(KeyboardInterrupt):
        compress(model, data, recipe, out=out)
    assert len(trials) == 2 and not out.exists()
    again = []
    monkeypatch.setattr(
        ModelEvaluator, "_trial", lambda self, s: (again.append(s), tried(self, s))[1]
    )
    monkeypatch.setattr("onnxq.pipeline.sweep_variant", lambda *_, **__: pytest.fail("swept again"))
    compress(model, data, recipe, out=out, resume=True)
    assert out.read_bytes() == whole
    assert not {tuple(s) for s in again} & {tuple(s) for s in trials}


def test_nothing_is_kept_without_a_checkpoint():
    cache = TrialCache(None, resume=True)
    assert cache._checkpoint is None
