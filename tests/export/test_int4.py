"""Codes as tensors of type INT4: the bits of the packed form, in float kernels."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_graphs import (
    Quantized,
    images,
    quantize,
    run,
    serialised,
    small_graph,
)

from onnxq import compare, evaluate, inspect
from onnxq.data.preprocess import Preprocess, find_preprocess
from onnxq.data.samples import open_samples
from onnxq.errors import RecipeError
from onnxq.export.compact import export
from onnxq.load.interface import input_specs
from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.pipeline import Result, compress, plan_model
from onnxq.plan import planner
from onnxq.report.result import result_notes
from onnxq.verify.kernels import INTEGER_KERNELS, read_kernels

SETTINGS = {
    "per channel": {},
    "per tensor": {"granularity": "per-tensor"},
    "float activations": {"activation_bits": None},
    "few codes of activations": {"activation_bits": 4},
}
SAMPLES = 64
VARIABLE = "ONNXQ_NEWEST_PYTHON"
TOLERANCE = 0.01
"""Of the largest logit: integer and float sums round a value midway between codes either way."""


def graph(name: str) -> ir.Model:
    """A small graph at the opset that INT4 needs."""
    proto = onnx.version_converter.convert_version(ir.to_proto(small_graph(name)), 21)
    proto.ir_version = 10
    return ir.from_proto(proto)


def made_with(name: str, bits: int, target: str, **options: object) -> Quantized:
    recipe = Recipe(weight_bits=bits, first_last_bits=bits, target=target, **options)  # type: ignore[arg-type]
    return quantize(graph(name), recipe=recipe)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("name", ["residual", "shared", "transposed", "excite"])
def test_the_bits_of_the_student_and_of_the_packed_form(name, bits, setting, monkeypatch):
    monkeypatch.setattr(planner, "packing_refusal", lambda *args: "")
    made, packed = (made_with(name, bits, t, **SETTINGS[setting]) for t in ("int4", "cpu"))
    feeds = {"x": images(8, seed=5)}
    outputs = [run(m, feeds) for m in (made.baked, made.exported, packed.exported)]
    for found in outputs[1:]:
        np.testing.assert_array_equal(outputs[0]["y"], found["y"])
    assert serialised(made.exported) == serialised(export(made.student, made.qparams))
    onnx.checker.check_model(ir.to_proto(made.exported), full_check=True)
    for spec in made.plan.layers.values():
        codes = made.lowered.graph.initializers[f"{spec.weight}.codes"].const_value
        assert spec.int4 and not spec.packed and codes.dtype == ir.DataType.INT4
        assert codes.nbytes == (codes.size + 1) // 2
    float_kernels = read_kernels(made.exported, made.plan).layers
    assert not set(float_kernels.values()) & INTEGER_KERNELS


def test_wider_codes_stay_in_bytes_and_say_why(sample_models):
    model = sample_models / "digits_resnet.onnx"
    names = list(plan_model(model, Recipe(target="int4", weight_bits=4)).plan.layers)
    recipe = Recipe(target="int4", weight_bits=5, layers=(LayerOverride(names[3], weight_bits=4),))
    plan = plan_model(model, recipe).plan
    held = {spec.num_bits: (spec.int4, spec.refusal) for spec in plan.layers.values()}
    assert held.keys() == {4, 5, 8}
    assert held[4] == (True, "") and held[8] == (False, "")
    assert held[5] == (False, "one weight per byte: INT4 holds 4 bits, not 5")


def test_codebooks_stay_lookups_and_say_why(monkeypatch):
    monkeypatch.setattr(planner, "codebook_refusal", lambda *args, **more: "")
    recipe = Recipe(target="int4", weight_bits=4, codebook=16)
    made = quantize(graph("residual"), recipe=recipe)
    reasons = {(spec.int4, spec.refusal) for spec in made.plan.layers.values()}
    assert reasons == {(False, "codebook indices stay packed: INT4 tensors hold integer weights")}
    feeds = {"x": images(8, seed=5)}
    np.testing.assert_array_equal(run(made.baked, feeds)["y"], run(made.exported, feeds)["y"])


def test_codes_of_eight_bits_are_refused(sample_models):
    with pytest.raises(RecipeError, match="those of every layer have 8 or more; give --weight-bi"):
        plan_model(sample_models / "digits_resnet.onnx", Recipe(target="int4"))


@pytest.fixture(scope="module")
def files(sample_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """A sample model with packed codes and with INT4 tensors."""
    folder, data = tmp_path_factory.mktemp("int4"), sample_models / "digits" / "unlabelled"
    model = sample_models / "digits_resnet.onnx"
    return {
        target: compress(
            model,
            data,
            Recipe(samples=SAMPLES, learn=("none",), weight_bits=4, target=target),
            out=folder / f"{target}.onnx",
        )
        for target in ("cpu", "int4")
    }


def test_a_file_of_int4_is_read_back(files, sample_models):
    result = files["int4"]
    opsets = {target: made.model.opset_imports[""] for target, made in files.items()}
    assert opsets["int4"] == 21 > opsets["cpu"]
    assert result.metrics.student_agreement == 1.0
    rows = {row.name: row for row in inspect(result.path).layers}
    for name, spec in result.plan.layers.items():
        assert (spec.int4, rows[name].num_bits) == (spec.num_bits == 4, spec.num_bits)
        if spec.int4:
            assert rows[name].bytes_after == (spec.parameters + 1) // 2
            assert (rows[name].compute, rows[name].reason[:5]) == ("weight-only", "INT4:")
    notes = "; ".join(result_notes(result))
    assert f"{sum(s.int4 for s in result.plan.layers.values())} of 10 layers hold INT4" in notes
    assert "int8 is slower" not in notes and "planned for integer" not in notes
    original, data = sample_models / "digits_resnet.onnx", sample_models / "digits" / "unlabelled"
    rows = compare(original, result.path, data, samples=16).layers
    assert {row.sqnr_db is None for row in rows} == {False} and len(rows) == 10
    labelled = sample_models / "digits" / "labelled"
    tops = [evaluate(made.path, labelled).top1 for made in files.values()]
    assert abs(tops[0] - tops[1]) < 1.0


def test_both_forms_agree(files, sample_models):
    preprocess = find_preprocess(files["cpu"].path, files["cpu"].model.metadata_props)
    data = sample_models / "digits" / "unlabelled"
    check_agreement(files, data, preprocess)


def test_both_forms_agree_on_a_real_model(assets, tmp_path):
    preprocess = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    model, data = assets / "models" / "cifar10_resnet20.onnx", assets / "cifar10" / "unlabelled.npz"
    recipe = Recipe(samples=SAMPLES, learn=("none",), weight_bits=4, equalize=False)
    made = {
        target: compress(
            model,
            data,
            replace(recipe, target=target),
            out=tmp_path / f"{target}.onnx",
            preprocess=preprocess,
        )
        for target in ("cpu", "int4")
    }
    check_agreement(made, data, preprocess)
    assert made["cpu"].metrics.ratio < 0.165 and made["int4"].metrics.ratio < 0.165
    assert made["cpu"].metrics.integer_layers == 20


def check_agreement(made: dict[str, Result], data: Path, preprocess: Preprocess | None) -> None:
    """Equal bits without optimisation; with it, and in the newest runtime, equal decisions."""
    specs = input_specs(made["cpu"].model)
    feeds = next(open_samples(data, specs, preprocess, SAMPLES, seed=1).batches(SAMPLES))
    plain, packed, int4 = (
        run(made[target].path, feeds, optimise=optimise)["logits"]
        for target, optimise in (("cpu", False), ("cpu", True), ("int4", True))
    )
    np.testing.assert_array_equal(plain, run(made["int4"].path, feeds)["logits"])
    python = os.environ.get(VARIABLE)
    newest = [run_newest(python, each.path, feeds) for each in made.values()] if python else []
    for found in (packed, int4, *newest):
        assert (found.argmax(axis=1) == plain.argmax(axis=1)).mean() >= 0.98
        assert np.abs(found - plain).mean() <= TOLERANCE * np.abs(plain).max()


def run_newest(python: str, model: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The logits in the environment with the newest ONNX Runtime."""
    (name,) = feeds
    np.savez(model.with_suffix(".npz"), x=feeds[name])
    script = (
        "import sys, numpy as np, onnxruntime as ort; model, feeds, name = sys.argv[1:]; "
        "session = ort.InferenceSession(model, providers=['CPUExecutionProvider']); "
        "np.save(feeds + '.npy', session.run(['logits'], {name: np.load(feeds)['x']})[0])"
    )
    arrays = str(model.with_suffix(".npz"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [python, "-c", script, str(model), arrays, name]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=100)
    return np.load(arrays + ".npy")
