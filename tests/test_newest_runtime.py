"""Every exported form in the newest ONNX Runtime, which lives in an environment of its own.

ONNXQ_NEWEST_PYTHON names that environment's interpreter; onnxruntime and numpy are all that
it needs.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from small_graphs import images, quantize, run, serialised, small_graph

from onnxq.data.preprocess import find_preprocess
from onnxq.data.samples import open_samples
from onnxq.load.interface import input_specs
from onnxq.options.recipe import Recipe
from onnxq.pipeline import Result, compress
from onnxq.plan import planner
from onnxq.runtime.session import open_session
from onnxq.verify.kernels import INTEGER_KERNELS

VARIABLE = "ONNXQ_NEWEST_PYTHON"
SAMPLES = 32

# On one machine both versions give the same bits. Where their kernels differ, a value midway
# between two codes may be rounded either way, and a code of a tensor is 0.4 % of its range.
TOLERANCE = 0.01

MODELS = ("digits_resnet", "digits_mobilenet", "digits_mlp")
FORMS = {
    "per-channel": Recipe(samples=64, learn=("none",)),
    "per-tensor": Recipe(samples=64, learn=("none",), granularity="per-tensor"),
    "symmetric": Recipe(samples=64, learn=("none",), symmetric=True),
    "weight-only": Recipe(samples=64, learn=("none",), activation_bits=None),
    "cpu-avx2": Recipe(samples=64, learn=("none",), target="cpu-avx2"),
    "codebook of 16": Recipe(samples=64, learn=("none",), codebook=16),
    "codebook of 6, weight-only": Recipe(
        samples=64, learn=("none",), codebook=6, activation_bits=None
    ),
    "4 bits": Recipe(samples=64, learn=("none",), weight_bits=4),
    "4 and 4 bits": Recipe(samples=64, learn=("none",), weight_bits=4, activation_bits=4),
    "3 bits, weight-only": Recipe(samples=64, learn=("none",), weight_bits=3, activation_bits=None),
}
COUNTS = (2, 3, 4, 5, 6, 7, 16, 17, 32, 256)

RUN = """
import sys
import numpy as np
import onnxruntime as ort
model, feeds, outputs, optimised = sys.argv[1:]
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 3
options.optimized_model_filepath = optimised
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
np.savez(outputs, **dict(zip(names, session.run(names, dict(np.load(feeds))))))
print(ort.__version__)
"""


@pytest.fixture(scope="module")
def newest() -> str:
    """The interpreter beside the newest ONNX Runtime."""
    python = os.environ.get(VARIABLE)
    if not python:
        pytest.skip(f"{VARIABLE} names no interpreter with the newest onnxruntime")
    return python


@pytest.fixture(scope="module", params=[(m, f) for m in MODELS for f in FORMS], ids="-".join)
def exported(
    request: pytest.FixtureRequest,
    newest: str,
    sample_models: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Result, dict[str, np.ndarray], Path]:
    """A compressed sample model, what the newest runtime made of it, and the folder."""
    name, form = request.param
    folder = tmp_path_factory.mktemp(f"{name}-{form}")
    unlabelled = sample_models / "digits" / "unlabelled"
    result = compress(
        sample_models / f"{name}.onnx", unlabelled, FORMS[form], out=folder / "model.onnx"
    )
    preprocess = find_preprocess(folder / "model.onnx", result.model.metadata_props)
    samples = open_samples(unlabelled, input_specs(result.model), preprocess, SAMPLES, seed=1)
    feeds = next(samples.batches(SAMPLES))
    np.savez(folder / "feeds.npz", **feeds)
    run_newest(newest, folder)
    return result, feeds, folder


def run_newest(newest: str, folder: Path) -> None:
    """Run `model.onnx` of a folder on `feeds.npz` there; outputs and graph go beside them."""
    files = ["model.onnx", "feeds.npz", "outputs.npz", "optimised.onnx"]
    done = subprocess.run(
        [newest, "-W", "error", "-c", RUN, *files],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() != ort.__version__, f"{VARIABLE} has the pinned version itself"


def test_outputs_are_those_of_the_pinned_version(exported) -> None:
    _, feeds, folder = exported
    session = open_session(folder / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    found = np.load(folder / "outputs.npz")
    assert sorted(found.files) == sorted(names)
    for name, expected in zip(names, session.run(names, feeds), strict=True):
        error = np.abs(found[name] - expected).max() / np.abs(expected).max()
        assert error <= TOLERANCE
        assert (found[name].argmax(axis=1) == expected.argmax(axis=1)).all()


def test_layers_run_on_the_kernels_that_they_were_planned_for(exported) -> None:
    result, _, folder = exported
    counts = Counter(node.op_type for node in ir.load(folder / "optimised.onnx").graph)
    planned = Counter(spec.op_type for spec in result.plan.integer_layers())
    layers = Counter(spec.op_type for spec in result.plan.layers.values())
    assert counts["QLinearConv"] == planned["Conv"]
    assert counts["QGemm"] == planned["Gemm"]
    assert counts["Conv"] + counts["FusedConv"] == layers["Conv"] - planned["Conv"]
    assert counts["Gemm"] + counts["FusedGemm"] == layers["Gemm"] - planned["Gemm"]
    if not planned:
        assert not counts.keys() & INTEGER_KERNELS
        # Integer weights were made float once, at the start of the session.
        assert not counts.keys() & {"Cast", "Mul", "DequantizeLinear"}
    assert not counts.keys() & {"Gather", "BitShift", "Mod"}


def check_small_graph(newest: str, folder: Path, exported: ir.Model, absent: str) -> None:
    """The same outputs there, and neither the lookup's nodes nor the absent operator."""
    x = images(8, seed=5)
    (folder / "model.onnx").write_bytes(serialised(exported))
    np.savez(folder / "feeds.npz", x=x)
    run_newest(newest, folder)
    expected = run(exported, {"x": x}, optimise=True)["y"]
    found = np.load(folder / "outputs.npz")["y"]
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()
    operators = {node.op_type for node in ir.load(folder / "optimised.onnx").graph}
    assert not operators & {"Gather", "BitShift", "Mod", "Cast", absent}


@pytest.mark.parametrize("activation_bits", [8, None])
@pytest.mark.parametrize("count", COUNTS)
def test_codebooks_of_every_count(newest, count, activation_bits, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(planner, "codebook_refusal", lambda *args, **more: "")
    recipe = Recipe(codebook=count, activation_bits=activation_bits)
    made = quantize(small_graph("residual"), recipe=recipe)
    check_small_graph(newest, tmp_path, made.exported, "Conv" if activation_bits else "")


@pytest.mark.parametrize("activation_bits", [8, None])
@pytest.mark.parametrize("weight_bits", range(2, 8))
def test_packed_codes_of_every_width(
    newest, weight_bits, activation_bits, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(planner, "packing_refusal", lambda *args: "")
    recipe = Recipe(weight_bits=weight_bits, activation_bits=activation_bits)
    made = quantize(small_graph("residual"), recipe=recipe)
    check_small_graph(newest, tmp_path, made.exported, "Conv" if activation_bits else "")


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("activation_bits", [2, 4])
@pytest.mark.parametrize("name", ["residual", "excite", "max_pool", "pad_signed", "concat"])
def test_few_codes_of_activations(newest, name, activation_bits, symmetric, tmp_path) -> None:
    recipe = Recipe(activation_bits=activation_bits, symmetric=symmetric)
    made = quantize(small_graph(name), recipe=recipe)
    check_small_graph(newest, tmp_path, made.exported, "Conv")
