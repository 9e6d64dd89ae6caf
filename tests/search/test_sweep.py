"""The sweep gives what the whole student gives with one weight quantized and no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import BODIES, HEAD, Quantized, image_graph, images, quantize, run, small_graph

from onnxq.data.samples import open_samples
from onnxq.errors import DataError, ModelError
from onnxq.load.interface import input_specs
from onnxq.numerics.distances import kl_divergence, log_probabilities
from onnxq.options.recipe import Recipe
from onnxq.runtime.dataset import Samples
from onnxq.search import sweep as module
from onnxq.search.sweep import sweep
from onnxq.search.table import FLOAT, Effect, Setting, SweepTable
from onnxq.student.student import bake

FLOAT_ACTIVATIONS = Recipe(activation_bits=None)
SAMPLES = 40
BITS = Setting(weight_bits=8)

Open = Callable[..., Samples]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Samples for a small graph; the last batch of 16 is short."""

    def open_for(model: ir.Model, count: int = SAMPLES) -> Samples:
        np.savez(tmp_path / "x.npz", x=images(count))
        return open_samples(tmp_path / "x.npz", input_specs(model), None)

    return open_for


def swept(found: Quantized, samples: Samples, **options: Any) -> SweepTable:
    return sweep(found.teacher, found.student, found.qparams, samples, **options)


def whole_student(model: ir.Model, weight: str, setting: Setting) -> np.ndarray:
    """The outputs of a student whose other weights were left in float, by the whole graph."""
    nodes = [node for node, _ in model.graph.initializers[weight].uses()]
    # A factor stands between a weight and the layer that reads it.
    readers = [
        n.name if is_layer(model, n.name) else n.outputs[0].consumers()[0].name for n in nodes
    ]
    others = [n.name for n in model.graph if n.name not in readers]
    recipe = Recipe(
        activation_bits=None,
        layers=tuple(setting.override(str(name)) for name in readers),
        exclude=tuple(name for name in others if is_layer(model, name)),
    )
    found = quantize(model, recipe=recipe)
    return run(found.baked, {"x": images(SAMPLES)}, optimise=True)["y"]


def is_layer(model: ir.Model, name: str | None) -> bool:
    return model.graph.node(str(name)).op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")


def mean_kl(teacher: np.ndarray, student: np.ndarray) -> float:
    logs = (log_probabilities(rows, False) for rows in (teacher, student))
    return float(kl_divergence(*logs).mean())


@pytest.mark.parametrize("name", sorted(BODIES))
def test_each_suffix_gives_what_the_whole_student_gives(name, opened, monkeypatch):
    monkeypatch.setattr("onnxq.search.effects.COUNTS", (2, 5))
    monkeypatch.setattr("onnxq.search.effects.codebook_refusal", lambda *_, **__: "")
    monkeypatch.setattr("onnxq.plan.planner.codebook_refusal", lambda *_, **__: "")
    # Weights as few as these are not packed: every width is made to save bytes.
    monkeypatch.setattr("onnxq.search.effects.WIDTHS", (3, 8))
    monkeypatch.setattr("onnxq.search.effects.weight_bytes", lambda spec, **_: spec.num_bits)
    model = small_graph(name)
    found = quantize(model, recipe=FLOAT_ACTIVATIONS)
    table = swept(found, opened(model))
    assert [s.label for s in table.settings] == ["K=2", "K=5", "3 bits", "8 bits"]
    teacher = run(model, {"x": images(SAMPLES)}, optimise=True)["y"]
    assert [row.name for row in table.rows] == list(dict.fromkeys(r.name for r in table.rows))
    for row in table.rows:
        weight = found.plan.layers[row.name].weight
        for setting, effect in row.effects.items():
            if setting != FLOAT:
                expected = mean_kl(teacher, whole_student(model, weight, setting))
                assert effect.error == pytest.approx(expected, rel=1e-3, abs=1e-9)
                assert expected > 1e-9


def test_layers_that_share_a_weight_are_one_row(opened):
    model = small_graph("shared")
    table = swept(quantize(model, recipe=FLOAT_ACTIVATIONS), opened(model))
    assert [row.layers for row in table.rows] == [("Conv_a",), ("Conv_c", "Conv_d"), ("Gemm_y",)]


def test_float_costs_nothing_and_finer_settings_cost_less(opened, monkeypatch):
    monkeypatch.setattr("onnxq.search.effects.codebook_refusal", lambda *_, **__: "")
    model = small_graph("residual")
    for row in swept(quantize(model, recipe=FLOAT_ACTIVATIONS), opened(model)).rows:
        assert row.effects[FLOAT] == Effect(4 * row.parameters, 0.0, 0.0, 0.0)
        errors = [row.effects[Setting(codebook=k)].error for k in (2, 8, 32)]
        assert errors == sorted(errors, reverse=True) and errors[0] > 10 * errors[2]
        channels = 5 if row.name.startswith("Gemm") else 6
        assert row.effects[BITS].size == row.parameters + 4 * channels
        assert row.effects[BITS].error < errors[1]


def test_settings_are_those_that_save_bytes(opened):
    rng = np.random.default_rng(0)
    shapes = {"narrow": (300, 6, 1, 1), "wide": (300, 300, 1, 1)}
    given = {k: rng.normal(0, 0.05, shape).astype(np.float32) for k, shape in shapes.items()}
    body = "a = Conv (x, wy, by) b = Conv (a, narrow) c = Conv (b, wide) y = GlobalAveragePool (c)"
    model = image_graph(body, "float[N, 300, 1, 1] y", **given)
    found, widths = [], []
    for recipe in (FLOAT_ACTIVATIONS, Recipe()):
        rows = swept(quantize(model, recipe=recipe), opened(model)).rows
        found.append([[s.codebook for s in row.effects if s.codebook] for row in rows])
        widths.append([[s.weight_bits for s in row.effects if s.weight_bits] for row in rows])
    # An int8 table takes a quarter of the bytes of a float one.
    wide = [2, 4, 8, 16, 32, 64, 128]
    assert found == [[[], [2, 4, 8, 16, 32], wide], [[], [2, 4, 8, 16, 32], wide]]
    # Six bits have two fields, which in a small layer take more than the other two bits save.
    assert widths == [[[8], [2, 3, 4, 5, 8], [2, 3, 4, 5, 6, 8]]] * 2


def large_layer() -> ir.Model:
    weight = np.random.default_rng(0).normal(0, 0.05, (64, 3, 8, 8)).astype(np.float32)
    body = "z = Conv <pads = [4, 4, 4, 4]> (x, large) y = GlobalAveragePool (z)"
    return image_graph(body, "float[N, 64, 1, 1] y", large=weight)


@pytest.mark.parametrize(
    ("recipe", "widths"),
    [
        (Recipe(), [2, 3, 4, 5, 6, 8]),
        (Recipe(target="cpu-avx2"), [2, 3, 4, 5, 6, 7]),
        (Recipe(weight_bits=5, first_last_bits=5), [2, 3, 4, 5]),
        # The first and the last layer have 8 bits, where nothing else is said.
        (Recipe(weight_bits=5), [2, 3, 4, 5, 6, 8]),
    ],
)
def test_no_width_is_above_that_of_the_recipe(opened, recipe, widths):
    model = large_layer()
    table = swept(quantize(model, recipe=recipe), opened(model), codebooks=False)
    assert [s.weight_bits for s in table.rows[0].effects if s != FLOAT] == widths


def test_thresholds_are_those_that_a_student_starts_with(opened):
    """The clip method of the recipe, at every width: a student of that width has them too."""
    model, errors = large_layer(), {}
    for method in ("mse", "max"):
        recipe = replace(FLOAT_ACTIVATIONS, calibration=method)
        found = quantize(model, recipe=recipe)
        table = swept(found, opened(model), codebooks=False, calibration=method)
        errors[method] = table.rows[0].effects[Setting(weight_bits=3)].error
        narrow = quantize(model, recipe=replace(recipe, weight_bits=3, first_last_bits=3))
        assert narrow.plan.layers["Conv_z"].packed
        teacher, student = (
            run(m, {"x": images(SAMPLES)}, optimise=True)["y"].reshape(SAMPLES, -1)
            for m in (model, narrow.baked)
        )
        assert errors[method] == pytest.approx(mean_kl(teacher, student), rel=1e-3)
    assert errors["mse"] < 0.9 * errors["max"]


def test_the_result_depends_on_neither_cores_nor_memory(opened, monkeypatch):
    model = small_graph("excite")
    found, samples = quantize(model, recipe=FLOAT_ACTIVATIONS), opened(small_graph("excite"))
    one = swept(found, samples, workers=1)
    assert swept(found, samples, workers=3) == one
    # Every weight is a group of its own, and every batch a chunk.
    monkeypatch.setattr(module, "FREE_SHARE", 10**15)
    assert swept(found, samples, workers=2) == one


def test_classes_may_lie_in_one_pixel_of_many_channels(opened):
    weight = np.random.default_rng(0).normal(0, 1, (5, 6)).astype(np.float32)
    given = {"wx": np.random.default_rng(1).normal(0, 1, (6, 3, 3, 3)).astype(np.float32)}
    given["bx"] = np.zeros(6, np.float32)
    head = "g = GlobalAveragePool (z) y = Conv (g, wl)"
    flat = image_graph(f"{BODIES['relu']} {HEAD}", wh=weight, bh=np.zeros(5, np.float32), **given)
    spatial = image_graph(
        f"{BODIES['relu']} {head}", "float[N, 5, 1, 1] y", wl=weight[:, :, None, None], **given
    )
    tables = [swept(quantize(m, recipe=FLOAT_ACTIVATIONS), opened(m)) for m in (flat, spatial)]
    assert [table.measure for table in tables] == ["kl", "kl"]
    for one, other in zip(tables[0].rows, tables[1].rows, strict=True):
        assert one.effects[BITS].error == pytest.approx(other.effects[BITS].error, rel=1e-3)


def test_other_outputs_are_judged_by_relative_squared_error(opened):
    body = f"{BODIES['float_side']} y = Relu (z) w = Neg (t)"
    model = image_graph(body, "float[N, 6, 8, 8] y, float[N, 6, 8, 8] w")
    found = quantize(model, recipe=FLOAT_ACTIVATIONS)
    table = swept(found, opened(model))
    assert table.measure == "error"
    names = {row.name: row for row in table.rows}
    # `w` is before the second convolution, which cannot reach it.
    effect = names["Conv_c"].effects[BITS]
    alone = quantize(model, recipe=replace(FLOAT_ACTIVATIONS, exclude=("Conv_a",)))
    feeds = {"x": images(SAMPLES)}
    y, found_y = (run(m, feeds, optimise=True)["y"] for m in (model, bake_of(alone)))
    expected = np.square(y - found_y).sum() / np.square(y).sum() / 2
    assert effect.error == pytest.approx(expected, rel=1e-3)
    assert effect.drop is None and effect.drop_error is None


def bake_of(found: Quantized) -> ir.Model:
    return bake(found.student, found.qparams)


def test_a_layer_that_no_compared_output_depends_on_costs_nothing(opened):
    body = f"{BODIES['relu']} {HEAD} s = Conv (x, wy, by) n = Cast <to = 7> (s)"
    model = image_graph(body, "float[N, 5] y, int64[N, 6, 8, 8] n")
    rows = {row.name: row for row in swept(quantize(model), opened(model)).rows}
    assert rows["Conv_s"].effects[BITS].error == 0
    assert rows["Conv_a"].effects[BITS].error > 0


def test_corrected_biases_take_part(opened):
    model = small_graph("relu")
    found = quantize(model, recipe=FLOAT_ACTIVATIONS)
    means = {"Conv_a": np.full(3, 5.0)}
    corrected = replace(found, qparams=found.qparams.with_means(means))
    before, after = (
        swept(each, opened(model)).rows[0].effects[BITS] for each in (found, corrected)
    )
    assert before.error != after.error


def test_the_batch_that_a_model_fixes_is_kept(opened):
    free, fixed = small_graph("relu"), small_graph("relu")
    for value in [*fixed.graph.inputs, *(v for n in fixed.graph for v in n.outputs)]:
        assert value.shape is not None
        value.shape = ir.Shape([4, *value.shape[1:]])
    tables = [
        swept(quantize(model, recipe=FLOAT_ACTIVATIONS), opened(model, 18), limit=17)
        for model in (free, fixed)
    ]
    assert [table.samples for table in tables] == [17, 16]
    assert tables[1].rows[0].effects[BITS].error > 0


def test_a_seventh_bit_is_the_last_where_sums_would_saturate(opened):
    model = small_graph("relu")
    table = swept(quantize(model, recipe=Recipe(target="cpu-avx2")), opened(model))
    assert [s.label for s in table.rows[0].effects] == ["7 bits", "float"]


def test_nothing_to_try_is_a_sentence(opened):
    model = small_graph("relu")
    with pytest.raises(ModelError, match="no layer to try"):
        swept(quantize(model, recipe=Recipe(exclude=("*",))), opened(model))
    with pytest.raises(DataError, match="1 of the samples are held out, and settings need 2"):
        swept(quantize(model), opened(model, 1))
