"""`--codebook auto`, `--max-drop` and `--max-size` as a user types them."""

from __future__ import annotations

import json
import signal
import subprocess
import tomllib

import pytest

from tests.cli.conftest import command, start

FAST = ("--samples", 128, "--epochs", 1)


def test_a_size_is_asked_for_in_percent(onnxq, sample_models, unlabelled, tmp_path):
    """Widths of codes alone are searched, where no codebook is asked for."""
    model, out, recipe = (
        sample_models / "digits_resnet.onnx", tmp_path / "o.onnx", tmp_path / "r.toml",
    )  # fmt: skip
    arguments = ("compress", model, "--data", unlabelled, "-o", out, *FAST, "--max-size", "20%")
    done = onnxq(*arguments, "--save-recipe", recipe)
    assert done.code == 0, done.err
    assert "target of the search" in done.out and "met" in done.out
    assert out.stat().st_size <= 0.2 * model.stat().st_size
    assert done.last.startswith(f"wrote {out}: ")
    layers = tomllib.loads(recipe.read_text())["layers"]
    assert len({layer["weight_bits"] for layer in layers}) > 1
    assert all(layer["codebook"] == "off" for layer in layers)
    stopped = tmp_path / "stopped.onnx"
    again = [stopped if each is out else each for each in arguments]
    stop_at("learn", *again)
    assert not stopped.exists()
    resumed = onnxq(*again, "--resume")
    assert resumed.code == 0, resumed.err
    assert stopped.read_bytes() == out.read_bytes()


def stop_at(stage, *arguments):
    """Run until a stage begins, then press Ctrl-C."""
    process = start(command(*arguments, "-v"), stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(stage):
            process.send_signal(signal.SIGINT)
            break
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert "--resume" in rest


def test_what_was_found_can_be_kept_and_asked_for_again(onnxq, sample_models, unlabelled, tmp_path):
    model, out, recipe = (
        sample_models / "digits_resnet.onnx", tmp_path / "o.onnx", tmp_path / "r.toml",
    )  # fmt: skip
    arguments = (model, "--data", unlabelled, "-o", out, *FAST)
    done = onnxq(
        "compress", *arguments, "--codebook", "auto", "--max-drop", 5, "--save-recipe", recipe,
        "--json",
    )  # fmt: skip
    search = json.loads(done.out)["figures"]["search"]
    assert done.code == 0 and search["met"] and search["max_drop"] == 5
    assert recipe.read_text().count("codebook = ") == len(search["settings"])
    shown = json.loads(onnxq("inspect", out, "--json").out)
    counts = {row["name"]: row["codebook"] for row in shown["layers"] if row["codebook"]}
    asked = {n: int(s[2:]) for n, s in search["settings"].items() if s.startswith("K=")}
    # Layers without a codebook have codes of the width that was found, and only those.
    widths = {n: int(s.split()[0]) for n, s in search["settings"].items() if n not in asked}
    bits = {row["name"]: row["num_bits"] for row in shown["layers"]}
    assert {n: bits[n] for n in widths} == widths
    # Int8 centroids that coincide are one.
    assert counts.keys() == asked.keys()
    assert all(count <= asked[name] for name, count in counts.items())
    again = onnxq("compress", *arguments, "--recipe", recipe, "--force", "--dry-run", "--json")
    planned = json.loads(again.out)["layers"]
    assert {row["name"]: row["codebook"] for row in planned if row["codebook"]} == asked


def test_a_target_out_of_reach_is_said_even_where_little_is_said(
    onnxq, sample_models, unlabelled, tmp_path
):
    out = tmp_path / "o.onnx"
    arguments = (sample_models / "digits_resnet.onnx", "--data", unlabelled, "-o", out, *FAST)
    done = onnxq("compress", *arguments, "--max-size", 20_000, "-q")
    assert done.code == 0 and out.exists()
    assert "note: the target of 20,000 bytes was not met: the smallest file has" in done.err
    assert done.out.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (("--max-size", 20), 1, "asks for 20 bytes, and without its weights the file has"),
        (("--max-size", "1.5"), 1, "'max_size' is '1.5'; expected a ratio between 0 and 1"),
        (("--max-size", "small"), 2, "'small' is not a ratio between 0 and 1"),
        (("--max-drop", 1, "--max-size", "10%"), 1, "are two goals of one search"),
        (("--codebook", 16, "--max-drop", 1), 1, "a search chooses the count of each layer"),
        (("--codebook", 1), 1, "expected a whole number from 2 to 256 or auto or off"),
        (("--codebook", "few"), 2, "'few' is not a whole number from 2 to 256"),
        (("--codebook", "auto", "--exclude", "*"), 1, "has nothing to quantize"),
        (("--codebook", "auto", "--exclude", "stm.*"), 1, "the nearest name is 'stem.conv'"),
    ],
)
def test_bad_targets_are_one_sentence(
    onnxq, sample_models, unlabelled, tmp_path, flags, code, sentence
):
    out = tmp_path / "o.onnx"
    model = sample_models / "digits_resnet.onnx"
    done = onnxq("compress", model, "--data", unlabelled, "-o", out, *FAST, *flags)
    assert (done.code, out.exists()) == (code, False)
    assert sentence in done.err
