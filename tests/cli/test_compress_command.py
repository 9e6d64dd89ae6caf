from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from onnxq.errors import OutputError
from onnxq.options.recipe import load_recipe
from tests.cli.conftest import command, start

SHORT = ("--samples", 128, "--learn", "none")


def test_the_last_line_names_the_file_and_the_ratio(onnxq_process, mlp, unlabelled, tmp_path):
    out = tmp_path / "small.onnx"
    done = onnxq_process("compress", mlp, "--data", unlabelled, "-o", out, *SHORT)
    assert done.code == 0, done.err
    match = re.fullmatch(rf"wrote {re.escape(str(out))}: ([\d.]+)% of the original .*", done.last)
    assert match is not None
    ratio = out.stat().st_size / mlp.stat().st_size
    assert float(match[1]) == pytest.approx(100 * ratio, abs=0.1)
    assert "agreement" in done.out
    # Not a terminal: no bar.
    assert done.err == ""


def test_quiet_leaves_the_last_line_alone(onnxq, mlp, unlabelled, tmp_path):
    done = onnxq("compress", mlp, "--data", unlabelled, "-o", tmp_path / "o.onnx", "-q", *SHORT)
    assert done.out.startswith("wrote ")
    assert done.out.count("\n") == 1


def test_biases_as_centroids(onnxq_process, onnxq, mlp, unlabelled, tmp_path):
    paths = ("compress", mlp, "--data", unlabelled, "-o", tmp_path / "o.onnx")
    done = onnxq_process(*paths, "--bias-centroids", 1, *SHORT)
    assert done.code == 0, done.err
    assert re.search(r"held-out error of shared biases .* 1 centroid for each layer", done.out)
    refused = onnxq(*paths, "--bias-centroids", 1, "--learn", "biases", "--force")
    assert refused.code == 1
    assert "contradict" in refused.err


def test_low_bits_from_the_command_line(onnxq_process, onnxq, mlp, unlabelled, tmp_path):
    out = tmp_path / "o.onnx"
    bits = ("--weight-bits", 4, "--activation-bits", 4, "--first-last-bits", 6)
    done = onnxq_process("compress", mlp, "--data", unlabelled, "-o", out, *bits, *SHORT)
    assert done.code == 0, done.err
    found = [row["num_bits"] for row in json.loads(onnxq("inspect", out, "--json").out)["layers"]]
    planned = json.loads(onnxq("compress", mlp, "--dry-run", "--json", *bits).out)["layers"]
    assert [row["num_bits"] for row in planned] == [6, *[4] * (len(planned) - 2), 6]
    assert found[0] == 6
    refused = onnxq("compress", mlp, "--data", unlabelled, "--first-last-bits", 1)
    assert refused.code == 1
    assert "'first_last_bits' is '1'; expected a whole number from 2 to 8" in refused.err
    assert onnxq("compress", mlp, "--dry-run", "--activation-bits", 1).code == 1


def test_json_is_all_there_is_on_stdout(onnxq, mlp, unlabelled, tmp_path):
    out = tmp_path / "o.onnx"
    done = onnxq("compress", mlp, "--data", unlabelled, "-o", out, "--json", *SHORT)
    fields = json.loads(done.out)
    assert fields["output"] == str(out)
    assert fields["figures"]["size_after"] == out.stat().st_size
    assert fields["figures"]["latency_after_ms"] > 0
    assert fields["recipe"]["samples"] == 128


def test_verbose_shows_the_stages_and_the_kernels(onnxq_process, mlp, unlabelled, tmp_path):
    out = tmp_path / "o.onnx"
    done = onnxq_process("compress", mlp, "--data", unlabelled, "-o", out, "-v", *SHORT)
    assert "calibrate" in done.err
    assert "QGemm" in done.out


def test_report_and_recipe_are_written(onnxq, mlp, unlabelled, tmp_path):
    recipe, report = tmp_path / "recipe.toml", tmp_path / "report"
    out = tmp_path / "o.onnx"
    paths = ("-o", out, "--save-recipe", recipe, "--report", report)
    done = onnxq("compress", mlp, "--data", unlabelled, *paths, *SHORT, "--calibration", "max")
    assert done.code == 0, done.err
    assert load_recipe(recipe).calibration == "max"
    assert (report / "report.html").is_file()
    assert json.loads((report / "report.json").read_text())["output"] == str(out)


def test_the_default_output_is_beside_the_model_alone(onnxq, mlp, rows, tmp_path, monkeypatch):
    model, here = tmp_path / "net.onnx", tmp_path / "here"
    model.write_bytes(mlp.read_bytes())
    here.mkdir()
    monkeypatch.chdir(here)
    done = onnxq("compress", model, "--data", rows, "-q", *SHORT)
    assert done.code == 0, done.err
    assert (tmp_path / "net-onnxq.onnx").is_file()
    assert not list(here.iterdir())


def test_flags_go_before_the_recipe_file(onnxq, mlp, unlabelled, tmp_path):
    recipe, used = tmp_path / "in.toml", tmp_path / "out.toml"
    recipe.write_text('samples = 100\ncalibration = "max"\nlearn = "none"\n')
    files = ("--recipe", recipe, "--save-recipe", used, "-o", tmp_path / "o.onnx")
    done = onnxq("compress", mlp, "--data", unlabelled, *files, "--calibration", "kl", "-q")
    assert done.code == 0, done.err
    found = load_recipe(used)
    assert (found.samples, found.calibration, found.learn) == (100, "kl", ("none",))


def test_dry_run_says_where_each_value_comes_from(onnxq, mlp, tmp_path):
    (tmp_path / "r.toml").write_text("weight-bits = 7\nepochs = 3\nseed = 1\n")
    command = ("compress", mlp, "--dry-run", "--recipe", tmp_path / "r.toml", "--seed", 2)
    rows = {row["option"]: row for row in json.loads(onnxq(*command, "--json").out)["options"]}
    found = {name: (row["value"], row["from"]) for name, row in rows.items()}
    assert found["weight_bits"] == (7, "recipe")
    assert found["epochs"] == (3, "recipe")
    assert found["seed"] == (2, "flag")
    assert found["learn"] == (["thresholds", "rounding"], "effort")
    assert found["effort"] == ("default", "default")
    told = onnxq("compress", mlp, "--dry-run", "--effort", "fast").out
    lines = [line.split() for line in told.splitlines()]
    assert ["learn", "rounding", "effort"] in lines and ["effort", "fast", "flag"] in lines
    assert ["epochs", "none", "effort"] in lines


def test_dry_run_needs_no_data_and_writes_nothing(onnxq, mlp, tmp_path):
    out = tmp_path / "o.onnx"
    done = onnxq("compress", mlp, "--dry-run", "-o", out, "--exclude", "Gemm")
    assert done.code == 0, done.err
    assert "it is excluded by the recipe" in done.out
    assert not out.exists()
    fields = json.loads(onnxq("compress", mlp, "--dry-run", "--json").out)
    assert all(layer["compute"] == "integer" for layer in fields["layers"])


def test_no_output_is_overwritten_without_force(onnxq, mlp, unlabelled, tmp_path):
    out = tmp_path / "o.onnx"
    out.write_text("mine")
    arguments = ("compress", mlp, "--data", unlabelled, "-o", out, "-q", *SHORT)
    done = onnxq(*arguments)
    assert done.code == 1
    assert "--force" in done.err
    assert out.read_text() == "mine"
    assert onnxq(*arguments, "--force").code == 0
    assert out.stat().st_size > 1000


@pytest.mark.parametrize(
    ("option", "path", "what"),
    [("--save-recipe", "kept.toml", "recipe"), ("--report", ".", "report")],
)
def test_nothing_else_is_overwritten_either(onnxq, mlp, unlabelled, tmp_path, option, path, what):
    kept = tmp_path / ("report.html" if what == "report" else path)
    kept.write_text("precious")
    out = tmp_path / "out.onnx"
    done = onnxq("compress", mlp, "--data", unlabelled, "-o", out, option, tmp_path / path)
    assert done.code == 1
    assert f"The {what} '{kept}' exists" in done.err
    assert kept.read_text() == "precious" and not out.exists()


def test_the_model_itself_is_never_the_output(onnxq, mlp, unlabelled, tmp_path):
    model = tmp_path / "net.onnx"
    model.write_bytes(mlp.read_bytes())
    done = onnxq("compress", model, "--data", unlabelled, "-o", model, "--force")
    assert done.code == 1
    assert "is the model itself" in done.err
    assert model.read_bytes() == mlp.read_bytes()


def test_threads_limit_the_cores_of_this_command_alone(onnxq, mlp, unlabelled, tmp_path):
    before = os.sched_getaffinity(0)
    out = tmp_path / "o.onnx"
    done = onnxq("compress", mlp, "--data", unlabelled, "-o", out, "--threads", 1, "-q", *SHORT)
    assert done.code == 0, done.err
    assert os.sched_getaffinity(0) == before


def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_resume(sample_models, unlabelled, tmp_path):
    out = tmp_path / "o.onnx"
    arguments = ("compress", sample_models / "digits_resnet.onnx", "--data", unlabelled)
    options = ("-o", out, "--learn", "thresholds", "--samples", 128, "-v")
    process = start(command(*arguments, *options, "--epochs", 500))
    assert process.stderr is not None
    checkpoint = tmp_path / "o.onnx.onnxq-checkpoint"
    for line in process.stderr:
        if "learn" in line and checkpoint.exists():
            process.send_signal(signal.SIGINT)
            break
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert "--resume" in rest
    assert "Traceback" not in rest
    assert checkpoint.exists()
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["absent.onnx", "--data", "."], 1, "The model 'absent.onnx' does not exist"),
        ([".", "--data", "."], 1, "is a folder"),
        (["{mlp}"], 2, "Missing option '--data'"),
        (["{mlp}", "--data", "absent"], 1, "'absent' does not exist"),
        (
            ["{mlp}", "--data", "{rows}", "--weight-bits", "99"],
            1,
            "a whole number from 2 to 8",
        ),
        (["{mlp}", "--data", "{rows}", "--granularity", "x"], 2, "'x' is not one of"),
        (["{mlp}", "--data", "{rows}", "--activation-bits", "x"], 2, "'x' is not a whole number"),
        (["{mlp}", "--data", "{rows}", "--mean", "1,b"], 2, "is not a list of numbers"),
        (["{mlp}", "--data", "{rows}", "--resize", "1,2,3"], 2, "height,width"),
        (["{mlp}", "--data", "{rows}", "--recipe", "absent.toml"], 1, "absent.toml"),
        (["{mlp}", "--data", "{rows}", "--exclude", "Grmm"], 1, "nearest"),
        (["{mlp}", "--data", "{rows}", "-o", "no/such/folder/o.onnx"], 1, "does not exist"),
    ],
)
def test_errors_are_one_sentence(onnxq, mlp, rows, tmp_path, arguments, code, sentence):
    given = [each.format(mlp=mlp, rows=rows) for each in arguments]
    if "-o" not in given:
        given += ["-o", str(tmp_path / "o.onnx")]
    done = onnxq("compress", *given)
    assert done.code == code
    assert sentence in done.err
    lines = [line for line in done.err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert done.out == ""
    assert not Path(tmp_path / "o.onnx").exists()


def test_learned_rounding_from_the_command_line(onnxq_process, onnxq, mlp, unlabelled, tmp_path):
    def run(name: str, *learn: str, onnxq=onnxq) -> tuple[dict, bytes]:
        out = tmp_path / name
        options = ("-o", out, "--weight-bits", 4, "--samples", 128, "--epochs", 2, "--json")
        done = onnxq("compress", mlp, "--data", unlabelled, *options, *learn)
        assert done.code == 0, done.err
        return json.loads(done.out)["figures"]["learning"], out.read_bytes()

    rounding = ("--learn", "rounding", "--learn", "thresholds")
    found, data = run("a.onnx", *rounding)
    thresholds, _ = run("b.onnx", "--learn", "thresholds")
    assert len(found["scores"]) == 3 and found["epoch"] == 3
    assert found["scores"][:2] == thresholds["scores"]
    assert found["score"] < thresholds["score"]
    again, same = run("c.onnx", *rounding, onnxq=onnxq_process)
    assert again == found and same == data


def test_an_older_flag_says_its_successor(onnxq, mlp):
    done = onnxq("compress", mlp, "--dry-run", "--no-spare", "--spare", "--save-recipe", "r.toml")
    assert done.code == 0
    notes = "note: --no-spare is now called --no-fallback\nnote: --spare is now called --fallback\n"
    assert done.err == notes
    assert "spare" not in onnxq("compress", "--help").out


def test_the_recipe_goes_over_neither_model_nor_output(onnxq, mlp, rows, tmp_path):
    model, out = tmp_path / "net.onnx", tmp_path / "o.onnx"
    model.write_bytes(mlp.read_bytes())
    for recipe, what in ((model, "is the model itself"), (out, "is the output")):
        options = ("-o", out, "--save-recipe", recipe, "--force", *SHORT)
        done = onnxq("compress", model, "--data", rows, *options)
        assert done.code == 1
        assert what in done.err
    assert model.read_bytes() == mlp.read_bytes() and not out.exists()


def test_an_error_leaves_no_folder_of_a_report(onnxq, rows, tmp_path):
    model = tmp_path / "net.onnx"
    model.write_text("no model")
    before = sorted(tmp_path.iterdir())
    done = onnxq("compress", model, "--data", rows, "--report", tmp_path / "new" / "report")
    assert done.code == 1
    assert sorted(tmp_path.iterdir()) == before


def test_an_error_after_learning_leaves_no_checkpoint(onnxq, mlp, rows, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OutputError("the disk is full; free some space")

    monkeypatch.setattr("onnxq.pipeline.save_model", full)
    out = tmp_path / "out" / "o.onnx"
    out.parent.mkdir()
    options = ("-o", out, "--epochs", 1, "--learn", "thresholds")
    done = onnxq("compress", mlp, "--data", rows, *options)
    assert (done.code, "disk is full" in done.err) == (1, True)
    assert list(out.parent.iterdir()) == []


def test_samples_beyond_all_bounds_are_refused(onnxq, mlp, tmp_path):
    huge = np.random.default_rng(0).normal(size=(8, 1, 8, 8)).astype(np.float32) * 1e30
    np.savez(tmp_path / "huge.npz", input=huge)
    done = onnxq("compress", mlp, "--data", tmp_path / "huge.npz", "-o", tmp_path / "o.onnx")
    assert done.code == 1
    assert "too large for the model" in done.err


def test_a_model_of_a_newer_format_is_compressed(onnxq, mlp, rows, tmp_path):
    model, out = tmp_path / "new.onnx", tmp_path / "o.onnx"
    # The first field of a model is the version of its format.
    data = mlp.read_bytes()
    assert data[0] == 8
    model.write_bytes(bytes([8, 12]) + data[2:])
    done = onnxq("compress", model, "--data", rows, "-o", out, "-q", *SHORT)
    assert done.code == 0, done.err
    assert onnxq("evaluate", out, "--data", rows, "--reference", model).code == 0


def test_float_layers_are_retrained(onnxq_process, onnxq, mlp, unlabelled, tmp_path):
    out = tmp_path / "o.onnx"
    learn = ("--learn", "float-layers", "--epochs", 1, "--samples", 128)
    done = onnxq("compress", mlp, "--data", unlabelled, "-o", out, *learn)
    assert done.code == 1 and "--exclude" in done.err
    rows = [row.split() for row in onnxq("inspect", mlp).out.splitlines()]
    names = [row[0] for row in rows if row[1:2] == ["Gemm"]]
    done = onnxq_process(
        "compress", mlp, "--data", unlabelled, "-o", out, *learn, "--exclude", names[-1]
    )
    assert done.code == 0, done.err
    assert done.last.startswith("wrote ")
