"""How learning is asked for on the command line, and what happens to a run that is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import tomllib

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxq.engine import kernels
from onnxq.options.recipe import METADATA_KEY, Recipe, load_recipe
from tests.cli.conftest import environment

LONG = ("--learn", "steps", "--learn", "weights")
BITS = ("--weight-bits", 3, "--activation-bits", 4)


def test_a_rate_for_each_kind_reaches_recipe_and_metadata(onnxq_process, mlp, unlabelled, tmp_path):
    out, saved = tmp_path / "o.onnx", tmp_path / "r.toml"
    done = onnxq_process(
        "compress", mlp, "--data", unlabelled, "-o", out, "--samples", 96, "--epochs", 1, *LONG,
        "--lr", "weights=0.001", "--lr", "steps=0.0005", "--optimizer", "sgd", "--loss", "outputs",
        "--augment", "shift", "--augment", "flip", "--save-recipe", saved,
    )  # fmt: skip
    assert done.code == 0, done.err
    recipe = load_recipe(saved)
    assert recipe.lr == {"weights": 0.001, "steps": 0.0005}
    assert (recipe.optimizer, recipe.loss) == ("sgd", "outputs")
    assert recipe.augment == ("shift", "flip")
    assert tomllib.loads(saved.read_text())["lr"] == recipe.lr
    assert Recipe.from_json(ir.load(out).metadata_props[METADATA_KEY]) == recipe
    again = tmp_path / "again.onnx"
    done = onnxq_process(
        "compress", mlp, "--data", unlabelled, "-o", again, "--recipe", saved, "-q"
    )
    assert done.code == 0, done.err
    assert again.read_bytes() == out.read_bytes()


def test_the_engine_is_said_and_kept(onnxq, mlp, unlabelled, tmp_path):
    out, saved = tmp_path / "o.onnx", tmp_path / "r.toml"
    done = onnxq(
        "compress", mlp, "--data", unlabelled, "-o", out, "--samples", 96, "--epochs", 1, "-v",
        "--engine", "onnx", "--learn", "thresholds", "--save-recipe", saved,
    )  # fmt: skip
    assert done.code == 0, done.err
    version = ort.__version__
    assert f"Engine: onnx (standard operators, ONNX Runtime {version})" in done.err.splitlines()
    assert tomllib.loads(saved.read_text())["engine"] == "onnx"


@pytest.mark.parametrize("command", ["compress", "distill", "sensitivity"])
def test_an_absent_engine_is_one_sentence(onnxq, mlp, unlabelled, tmp_path, monkeypatch, command):
    monkeypatch.setattr(kernels, "has_training_kernels", lambda: False)
    out = tmp_path / "o.onnx"
    models = (mlp, mlp) if command == "distill" else (mlp,)
    flags = ("--data", unlabelled, "-o", out, "--engine", "ort-training")
    done = onnxq(command, *models, *flags)
    assert done.code == 1
    assert "--engine ort-training needs onnxruntime-training-cpu 1.19.2" in done.err
    assert done.err.strip().count("\n") == 0
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--lr", "scales=0.1"), "or such numbers of some of 'thresholds', 'steps'"),
        (("--lr", "weights=-1"), "expected a number above 0"),
        (("--learn", "steps", "--lr", "weights=0.1"), "has a rate for 'weights', and 'learn' is"),
        (("--learn", "steps", "--learn", "thresholds"), "learn the same ranges"),
        (("--learn", "weights", "--bias-centroids", "4"), "'weights' and 'bias_centroids'"),
        (("--learn", "none", "--augment", "flip"), "'learn' = 'none' and 'augment' = 'flip'"),
    ],
)
def test_flags_that_do_not_fit_are_one_sentence(onnxq, mlp, unlabelled, tmp_path, flags, sentence):
    out = tmp_path / "o.onnx"
    done = onnxq("compress", mlp, "--data", unlabelled, "-o", out, *flags)
    assert done.code == 1
    assert sentence in done.err
    assert done.err.strip().count("\n") == 0
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--lr", "fast"), "'fast' is not a number, or a kind and a number such as biases=0.5"),
        (("--lr", "weights=fast"), "'weights=fast' is not a number, or a kind"),
        (("--lr", "=0.1"), "'=0.1' is not a number"),
        (("--lr", "0.1", "--lr", "steps=0.1"), "given for all and for single kinds"),
        (("--lr", "0.1", "--lr", "0.2"), "given twice for all; give it once"),
        (("--lr", "steps=0.1", "--lr", "steps=0.2"), "given twice for steps; give it once"),
        (("--synthesis-loss", "bn"), "'bn' is not a kind and a number such as adversarial=0.5"),
        (("--synthesis-loss", "1"), "'1' is not a kind and a number"),
        (("--synthesis-loss", "bn=x"), "'bn=x' is not a kind and a number"),
        (("--synthesis-loss", "bn=1", "--synthesis-loss", "bn=2"), "given twice for bn"),
    ],
)
def test_numbers_for_kinds_that_can_not_be_read_are_a_usage_error(onnxq, mlp, flags, sentence):
    done = onnxq("compress", mlp, "--data-free", *flags)
    assert done.code == 2
    assert f"Invalid value for '{flags[0]}': {sentence}" in done.err


def test_unknown_words_are_a_usage_error(onnxq, mlp, unlabelled):
    for flags in (("--optimizer", "lion"), ("--loss", "mse"), ("--augment", "rotate")):
        done = onnxq("compress", mlp, "--data", unlabelled, *flags)
        assert done.code == 2
        assert f"'{flags[1]}' is not one of" in done.err


def test_augmentation_needs_images(onnxq, tmp_path):
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["":13]>
g (float[N, 64] x) => (float[N, 4] y) { y = MatMul (x, w) }""",
        initializers=[ir.tensor(np.ones((64, 4), np.float32), name="w")],
    )
    ir.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((8, 64), np.float32))
    done = onnxq("compress", tmp_path / "m.onnx", "--data", tmp_path / "x.npz", "--augment", "flip")
    assert done.code == 1
    assert "The option 'augment' changes images and the model takes 'x'" in done.err


EAGER = "from onnxq.train import loop; loop.SAVE_SECONDS = 0.0; from onnxq.cli import main; main()"
"""The command, with a checkpoint after every step."""


def test_a_killed_run_goes_on_to_the_same_bytes(onnxq, mlp, unlabelled, tmp_path):
    options = (*BITS, *LONG, "--samples", 256, "--epochs", 40, "--data", unlabelled)
    whole, killed = tmp_path / "whole.onnx", tmp_path / "killed.onnx"
    assert onnxq("compress", mlp, "-o", whole, *options).code == 0
    arguments = [str(each) for each in ("compress", mlp, "-o", killed, *options)]
    process = subprocess.Popen(
        [sys.executable, "-c", EAGER, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    state = tmp_path / "killed.onnx.onnxq-checkpoint" / "state.npz"
    until = time.monotonic() + 60
    while not state.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    assert process.returncode == -signal.SIGKILL
    assert state.exists() and not killed.exists()
    with np.load(state) as arrays:
        epochs, epoch, *_ = arrays["state/numbers"]
    assert epoch < epochs == 40
    done = onnxq("compress", mlp, "-o", killed, *options, "--resume", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["figures"]["learning"]["epochs_run"] > epoch
    assert killed.read_bytes() == whole.read_bytes()
