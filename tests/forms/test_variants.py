"""Equal forms of a model, each quantized, and the correction of their biases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import (
    HEAD,
    Feeds,
    image_graph,
    quantization_on,
    quantize,
    run,
    serialised,
    small_graph,
    targets_of,
)

from onnxq.calibrate.calibrator import calibrate
from onnxq.export.compact import export
from onnxq.forms.quantization import Quantization
from onnxq.forms.variant import PLAIN, REPLACE, SAFE, choose_form, requantize
from onnxq.numerics.codebook import fit_codebook
from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.plan import planner
from onnxq.student import build
from onnxq.student.student import bake


def uneven_model(activation: str) -> ir.Model:
    """Two convolutions whose channels differ a thousandfold: one scale can't hold them."""
    rng = np.random.default_rng(0)
    factor = np.array([0.03, 30, 1, 0.1, 10, 0.3])
    first = rng.normal(0, 0.2, (6, 3, 3, 3)) * factor[:, None, None, None]
    second = rng.normal(0, 0.4, (6, 6, 1, 1)) / factor[None, :, None, None]
    body = f"a = Conv <pads = [1, 1, 1, 1]> (x, wl) r = {activation} z = Conv (r, wm, c6) {HEAD}"
    return image_graph(body, wl=first.astype(np.float32), wm=second.astype(np.float32))


def quantization(folder: Path, model: ir.Model) -> Quantization:
    x = np.random.default_rng(0).normal(1, 1, (96, 3, 8, 8)).astype(np.float32)
    return quantization_on(targets_of(folder, model, x, 32))


def test_the_equalized_form_is_chosen_where_channels_are_uneven(tmp_path):
    model = uneven_model("Relu (a)")
    before = serialised(model)
    quantize, recipe = quantization(tmp_path, model), Recipe(granularity="per-tensor")
    chosen, plain = choose_form(model, recipe, quantize), quantize(PLAIN, model, recipe)
    assert chosen.name == SAFE
    assert chosen.score < 0.5 * plain.score
    assert serialised(model) == before


def test_the_recipe_can_keep_the_plain_form(tmp_path):
    model = uneven_model("Relu (a)")
    recipe = Recipe(granularity="per-tensor", equalize=False)
    assert choose_form(model, recipe, quantization(tmp_path, model)).name == PLAIN


def test_the_plain_form_is_kept_where_there_are_no_pairs(tmp_path):
    model = small_graph("read_twice")
    assert choose_form(model, Recipe(), quantization(tmp_path, model)).name == PLAIN


def test_relu6_is_replaced_only_where_the_held_back_samples_agree(tmp_path):
    model = uneven_model("Clip (a, zero, six)")
    quantize, recipe = quantization(tmp_path, model), Recipe(granularity="per-tensor")
    chosen = choose_form(model, recipe, quantize)
    scores = {PLAIN: quantize(PLAIN, model, recipe).score, chosen.name: chosen.score}
    assert min(scores, key=scores.__getitem__) == chosen.name
    # Half the values of the widest channel are above 6: it is needed.
    assert chosen.name != REPLACE


@pytest.mark.parametrize(
    ("activation", "passes"), [("Relu (a)", [64]), ("Clip (a, zero, six)", [64, 24])]
)
def test_an_equal_form_is_calibrated_only_where_its_values_are_new(
    tmp_path, monkeypatch, activation, passes
):
    monkeypatch.setattr("onnxq.forms.quantization.FEW", 24)
    seen = []

    def counted(model, tensors, samples, *args, **more):
        seen.append(len(samples))
        return calibrate(model, tensors, samples, *args, **more)

    monkeypatch.setattr("onnxq.forms.quantization.calibrate", counted)
    model = uneven_model(activation)
    choose_form(model, Recipe(granularity="per-tensor"), quantization(tmp_path, model))
    assert seen == passes


@pytest.mark.parametrize("activation_bits", [8, None])
@pytest.mark.parametrize("name", ["residual", "depth_wise", "concat", "shared"])
def test_corrected_biases_bring_the_mean_output_closer(name, activation_bits):
    rng = np.random.default_rng(0)
    x = rng.normal(1, 1, (128, 3, 8, 8)).astype(np.float32)
    teacher = small_graph(name)
    samples = Feeds([{"x": x[i : i + 16]} for i in range(0, 128, 16)])
    recipe = Recipe(granularity="per-tensor", calibration="max", activation_bits=activation_bits)
    made = quantize(teacher, samples, recipe)
    corrected = made.corrected
    assert corrected.ranges == made.qparams.ranges
    assert corrected.biases is made.qparams.biases
    feeds = {"x": x}
    expected = run(teacher, feeds)["y"].mean(axis=0)

    def off(numbers) -> float:
        found = run(bake(made.student, numbers), feeds)["y"].mean(axis=0)
        return float(np.abs(found - expected).sum())

    assert off(corrected) < 0.8 * off(made.qparams)


@pytest.mark.parametrize("activation_bits", [8, None])
def test_the_export_writes_the_corrected_biases(activation_bits):
    x = np.random.default_rng(0).normal(1, 1, (64, 3, 8, 8)).astype(np.float32)
    samples = Feeds([{"x": x}])
    made = quantize(small_graph("residual"), samples, Recipe(activation_bits=activation_bits))
    corrected = made.corrected
    student = run(bake(made.student, corrected), {"x": x})["y"]
    exported = run(export(made.student, corrected), {"x": x})["y"]
    np.testing.assert_array_equal(student, exported)
    assert np.abs(student - run(made.baked, {"x": x})["y"]).max() > 0


def test_correction_is_taken_only_where_it_helps(tmp_path, monkeypatch):
    model = small_graph("residual")
    quantize = quantization(tmp_path, model)
    monkeypatch.setattr(
        "onnxq.forms.variant.correct_biases",
        lambda _model, _plan, qparams, _: qparams.with_means({"Conv_c": np.zeros(6)}),
    )
    variant = quantize(PLAIN, model, Recipe())
    assert not variant.corrected


def test_a_tensor_with_infinities_leaves_the_layers_around_it_float(tmp_path):
    # log(0) is -inf for half of the values, and exp(-inf) is 0 again.
    body = (
        "a = Conv <pads = [1, 1, 1, 1]> (x, wx, bx) r = Relu (a) l = Log (r) "
        f"k = Conv (l, wp, c6) e = Exp (k) s = Conv (e, w6, b6) z = Relu (s) {HEAD}"
    )
    positive = np.random.default_rng(0).uniform(0.05, 0.1, (6, 6, 1, 1)).astype(np.float32)
    model = image_graph(body, wp=positive)
    variant = quantization(tmp_path, model)(PLAIN, model, Recipe())
    layers = variant.student.plan.layers
    assert "NaN or infinite" in layers["Conv_k"].reason
    assert layers["Conv_a"].compute == layers["Conv_s"].compute == "integer"
    assert variant.score < 0.1


def test_codebooks_are_fitted_for_the_chosen_form_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(planner, "codebook_refusal", lambda *args, **more: "")
    fitted = []

    def counted(weight, *args):
        fitted.append(weight)
        return fit_codebook(weight, *args)

    monkeypatch.setattr(build, "fit_codebook", counted)
    model = uneven_model("Relu (a)")
    recipe = Recipe(granularity="per-tensor", codebook=16)
    chosen = choose_form(model, recipe, quantization(tmp_path, model))
    assert chosen.name == SAFE
    assert len(fitted) == len(chosen.student.plan.layers) == 3
    assert {spec.codebook for spec in chosen.student.plan.layers.values()} == {16}


def test_a_form_is_remade_under_another_recipe_without_measuring_again(tmp_path, monkeypatch):
    model = small_graph("residual")
    quantize = quantization(tmp_path, model)
    variant = quantize(PLAIN, model, Recipe())
    monkeypatch.setattr(Quantization, "calibrate", None)
    override = LayerOverride("Conv_c", keep_float=True)
    other = requantize(variant, Recipe(layers=(override,), bias_correction=False), quantize)
    assert list(other.student.plan.layers) == ["Conv_a", "Gemm_y"]
    assert other.name == PLAIN and other.model is model
    again = requantize(variant, Recipe(), quantize)
    assert again.score == variant.score
