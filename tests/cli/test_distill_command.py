from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxq.cli import start as start_module
from tests.cli.conftest import start
from tools.architectures import resnet
from tools.training import untrained_model


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> Path:
    """An untrained network of the teacher's kind, far narrower."""
    path = tmp_path_factory.mktemp("narrow") / "narrow.onnx"
    ir.save(untrained_model(partial(resnet, widths=(4, 6, 8)), "narrow"), path)
    return path


def test_a_student_learns_from_images(
    onnxq, onnxq_process, monkeypatch, sample_models, narrow, unlabelled, labelled, tmp_path
):
    # A line for every step: a fast machine is done before the second one is due.
    monkeypatch.setattr(start_module, "SECONDS", 0.0)
    teacher, out = sample_models / "digits_resnet.onnx", tmp_path / "o.onnx"
    done = onnxq(
        "distill", teacher, narrow, "--data", unlabelled, "-o", out, "--samples", 256,
        "--epochs", 12, "--batch-size", 8, "-v",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert re.match(rf"wrote {out}: \d+\.\d% of the teacher's size \(321 kB -> ", done.last)
    assert "agreement with the teacher" in done.out
    assert re.search(r"learn: \d+/\d+ [\w ]+ [\d.]+, held out .* agreement .*samples/s", done.err)
    assert "nan" not in done.err
    onnx.checker.check_model(onnx.load(out), full_check=True)
    # Its preprocessing is inside, as the teacher's is.
    found = onnxq_process("evaluate", out, "--data", labelled, "--reference", teacher, "--json")
    assert json.loads(found.out)["agreement"] > 60
    assert [path.name for path in tmp_path.iterdir()] == ["o.onnx"]


def test_a_student_learns_without_data_and_is_compressed_in_turn(onnxq, mlp, unlabelled, tmp_path):
    student, out = tmp_path / "s.onnx", tmp_path / "o.onnx"
    ir.save(small_mlp(), student)
    options = ("--data-free", "--init", "random", "--samples", 128, "--epochs", 20)
    done = onnxq("distill", mlp, student, *options, "-o", out, "--json")
    assert done.code == 0, done.err
    fields = json.loads(done.out)
    assert fields["figures"]["score"] < fields["figures"]["start_score"]
    assert fields["figures"]["samples"] == 128
    assert fields["options"]["init"] == "random" and fields["options"]["data_free"]
    assert fields["output"] == str(out)
    again = tmp_path / "again.onnx"
    assert onnxq("distill", mlp, student, *options, "-o", again, "-q").code == 0
    assert again.read_bytes() == out.read_bytes()
    other = tmp_path / "other.onnx"
    assert onnxq("distill", mlp, student, *options, "-o", other, "--seed", 1, "-q").code == 0
    assert other.read_bytes() != out.read_bytes()
    smaller = ("compress", out, "--data", unlabelled, "--samples", 64, "--learn", "none")
    done = onnxq(*smaller, "-o", tmp_path / "c.onnx")
    assert done.code == 0, done.err


def small_mlp() -> ir.Model:
    rng = np.random.default_rng(0)
    shapes = {"w": (64, 16), "b": (16,), "u": (16, 10)}
    arrays = {n: rng.normal(size=s).astype(np.float32) / 8 for n, s in shapes.items()}
    return ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["":13]>
net (float[N, 1, 8, 8] pixels) => (float[N, 10] classes) {
    f = Flatten (pixels) p = MatMul (f, w) q = Add (p, b) r = Relu (q) classes = MatMul (r, u)
}""",
        initializers=[ir.tensor(array, name=name) for name, array in arrays.items()],
    )


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        ((), 2, "only --data-free goes without"),
        (("--data-free", "--data", "x"), 1, "leave out --data or --data-free"),
        (("--data", "x", "--synthesis", "generator"), 1, "needs 'data_free'; set that too"),
        (("--data", "x", "--epochs", "0"), 1, "a whole number of at least 1"),
        (("--data", "x", "--lr", "-1"), 1, "a number above 0"),
        (("--data-free", "--init", "zeros"), 2, "'zeros' is not one of"),
        (("--data-free",), 1, "export a student that takes the same shapes"),
    ],
)
def test_what_does_not_fit_is_said(onnxq, mlp, tmp_path, flags, code, sentence):
    student, out = tmp_path / "s.onnx", tmp_path / "o.onnx"
    model = small_mlp()
    model.graph.inputs[0].shape = ir.Shape(["N", 1, 4, 16])
    ir.save(model, student)
    done = onnxq("distill", mlp, student, "-o", out, *flags)
    assert done.code == code
    assert sentence in " ".join(done.err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["s.onnx"]


def test_an_output_is_not_overwritten_unasked(onnxq, mlp, unlabelled, tmp_path):
    student = tmp_path / "s.onnx"
    ir.save(small_mlp(), student)
    command = ("distill", mlp, student, "--data", unlabelled, "--samples", 40, "--epochs", 1, "-q")
    assert onnxq(*command).code == 0
    default = tmp_path / "s-distilled.onnx"
    assert default.exists()
    refused = onnxq(*command)
    assert refused.code == 1 and "add --force" in refused.err
    assert onnxq(*command, "--force").code == 0
    for path, words in ((student, "is the model itself"), (mlp, "is the model itself")):
        refused = onnxq(*command, "-o", path, "--force")
        assert refused.code == 1 and words in refused.err


EAGER = "from onnxq.train import loop; loop.SAVE_SECONDS = 0.0; from onnxq.cli import main; main()"
"""The command, with a checkpoint after every step."""


def test_a_run_ended_by_ctrl_c_goes_on_to_the_same_bytes(onnxq, mlp, unlabelled, tmp_path):
    student, whole, stopped = (tmp_path / name for name in ("s.onnx", "whole.onnx", "o.onnx"))
    ir.save(small_mlp(), student)
    options = ("--data", unlabelled, "--samples", 128, "--epochs", 30)
    assert onnxq("distill", mlp, student, "-o", whole, *options).code == 0
    arguments = [str(each) for each in ("distill", mlp, student, "-o", stopped, *options)]
    process = start([sys.executable, "-c", EAGER, *arguments], stdout=subprocess.DEVNULL)
    state = tmp_path / "o.onnx.onnxq-checkpoint" / "state.npz"
    until = time.monotonic() + 60
    while not state.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "--resume" in err
    assert state.exists() and not stopped.exists()
    with np.load(state) as arrays:
        epochs, epoch, *_ = arrays["state/numbers"]
    assert epoch < epochs == 30
    done = onnxq("distill", mlp, student, "-o", stopped, *options, "--resume")
    assert done.code == 0, done.err
    assert stopped.read_bytes() == whole.read_bytes()
    assert not state.parent.exists()
