"""Batches that are fixed, or declared free and are not, from file to file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import build, run

from onnxq.distillation.distillation import distill
from onnxq.errors import ModelError
from onnxq.options.recipe import Recipe
from onnxq.pipeline import compress
from onnxq.verify import verify as verify_module
from onnxq.verify.benchmark import benchmark
from onnxq.verify.compare import compare
from onnxq.verify.evaluate import evaluate

WEIGHTS: dict[str, np.ndarray | tuple[int, ...]] = {
    "w": (16, 3, 3, 3), "v": (5, 16), "u": (5, 16, 6, 1), "axis": np.array([2]),
    "anchors": (1, 20, 4), "first": np.array([0]), "d": (16, 16, 3, 3), "one": np.array([1]),
}  # fmt: skip
CONV = "c = Conv <pads = [1, 1, 1, 1]> (x, w) a = Relu (c) e = Conv <pads = [1, 1, 1, 1]> (a, d)"
HEAD = "p = GlobalAveragePool (e) f = Flatten (p)"
BODY = f"{CONV} {HEAD} y = Gemm <transB = 1> (f, v)"
TABLE = f"{BODY} t = Identity (anchors)"
SEQUENCE = f"{CONV} s = Conv (e, u) q = Squeeze (s, axis) y = Transpose <perm = [2, 0, 1]> (q)"
MIXING = f"m = ReduceMean <axes = [0]> (x0) x = Add (x0, m) {BODY}"
QUICK = Recipe(learn=("none",))


def _files(folder: Path, signature: str, body: str, count: int = 40) -> tuple[Path, Path, Path]:
    words = {word for part in body.split() for word in part.strip("(),").split(",")}
    used = {n: w for n, w in WEIGHTS.items() if n in words or f" {n}" in signature}
    ir.save(build(f"net {signature} {{ {body} }}", used), folder / "model.onnx")
    name = "x0" if "x0" in signature else "x"
    x = np.random.default_rng(0).normal(size=(count, 3, 6, 6)).astype(np.float32)
    np.savez(folder / "x.npz", **{name: x})
    return folder / "model.onnx", folder / "x.npz", folder / "out.onnx"


def _shapes(path: Path) -> list[str]:
    graph = ir.load(path).graph
    return [f"{value.name} {value.shape}" for value in [*graph.inputs, *graph.outputs]]


@pytest.mark.parametrize(
    ("signature", "body", "batch"),
    [
        ("(float[2,3,6,6] x) => (float[2,5] y)", BODY, 2),
        ("(float[16,3,6,6] x) => (float[16,5] y)", BODY, 16),
        ("(float[1,3,6,6] x) => (float[1,5] y, float[1,20,4] t)", TABLE, 1),
        ("(float[4,3,6,6] x0) => (float[4,5] y)", MIXING, 4),
        ("(float[4,3,6,6] x) => (float[6,4,5] y)", SEQUENCE, 4),
        ("(float[N,3,6,6] x) => (float[6,N,5] y)", SEQUENCE, 3),
        ("(float[N,3,6,6] x0) => (float[N,5] y)", MIXING, 1),
    ],
    ids=["two", "most of the samples", "one", "mixed", "behind", "free behind", "free and mixed"],
)
def test_the_file_takes_what_the_original_takes(tmp_path, signature, body, batch):
    model, data, out = _files(tmp_path, signature, body)
    result = compress(model, data, QUICK, out=out)
    assert _shapes(out) == _shapes(model)
    assert result.metrics.latency_after_ms and result.metrics.latency_before_ms
    name = str(ir.load(model).graph.inputs[0].name)
    feeds = {name: np.random.default_rng(1).normal(size=(batch, 3, 6, 6)).astype(np.float32)}
    expected, found = run(model, feeds)["y"], run(out, feeds)["y"]
    assert np.square(expected).sum() > 100 * np.square(expected - found).sum()
    assert evaluate(out, data, model).sqnr_db["y"] > 20
    assert compare(model, out, data).outputs["y"] > 20
    assert len(benchmark([model, out], rounds=2, data=data)) == 2


def test_a_batch_of_all_samples_is_learned_and_held_back(tmp_path):
    model, data, _ = _files(tmp_path, "(float[16,3,6,6] x) => (float[16,5] y)", BODY, count=17)
    metrics = compress(model, data, Recipe(learn=("steps",), epochs=1)).metrics
    assert metrics.samples == metrics.held_back == 17


def test_a_latency_that_can_not_be_measured_is_a_note(tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise RuntimeError("no clock.")

    monkeypatch.setattr(verify_module, "measure_latency", fails)
    model, data, out = _files(tmp_path, "(float[2,3,6,6] x) => (float[2,5] y)", BODY)
    result = compress(model, data, QUICK, out=out)
    assert out.is_file() and result.metrics.latency_ratio is None
    assert "latency was not measured: a model does not run (no clock)" in result.notes


def test_nothing_to_match_is_refused_before_the_work(tmp_path):
    body = f"{BODY} b = IsNaN (y)"
    model, data, out = _files(tmp_path, "(float[N,3,6,6] x) => (bool[N,5] b)", body)
    with pytest.raises(ModelError, match="nothing to match"):
        compress(model, data, QUICK, out=out)
    assert not out.exists()


@pytest.mark.parametrize("mixing", [False, True], ids=["freed", "stuck"])
def test_a_student_keeps_its_batch(tmp_path, mixing):
    body, name = (MIXING, "x0") if mixing else (BODY, "x")
    paths = []
    for role, n in (("teacher", "N"), ("student", "2")):
        (tmp_path / role).mkdir()
        signature = f"(float[{n},3,6,6] {name}) => (float[{n},5] y)"
        given = (signature, body) if role == "student" else (signature.replace("x0", "x"), BODY)
        paths.append(_files(tmp_path / role, *given))
    (teacher, data, _), (student, _, out) = paths
    distill(teacher, student, data, Recipe(epochs=1), out=out)
    assert _shapes(out) == _shapes(student)
