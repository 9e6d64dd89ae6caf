from __future__ import annotations

import csv
import json
import re
import signal

import pytest

import onnxq as package
from tests.cli.conftest import command, start

FAST = ("--samples", 64, "--no-equalize", "--activation-bits", "none")


def test_tables_files_and_pictures(onnxq_process, mlp, unlabelled, tmp_path):
    out, folder = tmp_path / "table.json", tmp_path / "report"
    arguments = ("sensitivity", mlp, "--data", unlabelled, *FAST)
    done = onnxq_process(*arguments, "-o", out, "--report", folder, "-v")
    assert done.code == 0, done.err
    assert "KL divergence, nats" in done.out and "estimated drop, points" in done.out
    assert "try each layer alone" in done.err
    assert done.last.endswith("each alone and all others in float, on 32 samples")
    fields = json.loads(out.read_text())
    assert fields["measure"] == "kl" and fields["samples"] == 32
    settings = {each["setting"]: each for each in fields["layers"][0]["settings"]}
    assert settings["float"]["error"] == 0 < settings["8 bits"]["error"] < settings["K=2"]["error"]
    assert f"{settings['K=2']['bytes']:,}" in done.out
    assert settings["8 bits"]["error"] < settings["4 bits"]["error"] < settings["2 bits"]["error"]
    assert settings["4 bits"]["bytes"] < settings["8 bits"]["bytes"]
    for kind in ("codebooks", "codes"):
        assert f"KL divergence, nats, {kind}" in done.out
    assert json.loads((folder / "sensitivity.json").read_text()) == fields
    rows = list(csv.DictReader((folder / "sensitivity.csv").read_text().splitlines()))
    assert len(rows) == sum(len(layer["settings"]) for layer in fields["layers"])
    assert float(rows[0]["kl"]) == fields["layers"][0]["settings"][0]["error"]
    page = (folder / "sensitivity.html").read_text()
    assert page.count("<svg") == 4 and page.count("stroke-dasharray") == len(fields["layers"]) + 1
    assert not re.search(r"(src|href)=", page) and "NaN" not in page


def test_python_gives_the_same_as_json_on_stdout(onnxq, mlp, unlabelled):
    recipe = package.Recipe(samples=64, equalize=False, activation_bits=None, codebook=16)
    table = package.sensitivity(mlp, unlabelled, recipe)
    done = onnxq("sensitivity", mlp, "--data", unlabelled, *FAST, "--json")
    assert json.loads(done.out) == table.to_fields()


def test_settings_are_tried_on_made_images(onnxq_process, onnxq, mlp, tmp_path):
    folder = tmp_path / "report"
    losses = ("--synthesis-loss", "inception=5", "--seed", 1)
    arguments = ("sensitivity", mlp, "--data-free", *FAST, *losses)
    done = onnxq_process(*arguments, "--report", folder, "-v")
    assert done.code == 0, done.err
    assert "images: " in done.err and " inception -" in done.err
    assert "note: the model has no BatchNormalization" in done.out
    assert done.last.endswith("in float, on 32 samples generated from the model alone")
    fields = json.loads((folder / "sensitivity.json").read_text())
    assert fields["made"] and "its exporter folded it" in fields["notes"][0]
    page = (folder / "sensitivity.html").read_text()
    assert "on 32 samples generated from the original alone." in page and "folded it" in page
    settings = {each["setting"]: each for each in fields["layers"][0]["settings"]}
    assert 0 < settings["8 bits"]["error"] < settings["4 bits"]["error"] < settings["K=2"]["error"]
    # The recipe alone makes the images, and with them the table.
    recipe = package.Recipe(
        samples=64, equalize=False, activation_bits=None, data_free=True, seed=1,
        synthesis_losses={"inception": 5.0},
    )  # fmt: skip
    assert package.sensitivity(mlp, recipe=recipe).to_fields() == fields


def test_a_saved_generator_makes_them_too(onnxq, mlp, tmp_path):
    kept, out = tmp_path / "generator.onnx", tmp_path / "o.onnx"
    made = ("--data-free", "--samples", 64)
    first = onnxq(
        "compress", mlp, *made, "--synthesis", "generator", "--save-generator", kept, "-o", out,
        "--max-minutes", 0.02, "--learn", "none", "-q",
    )  # fmt: skip
    assert first.code == 0, first.err
    done = onnxq("sensitivity", mlp, *made, "--generator", kept, "--json", *FAST)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["made"] and not any("steps" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        ((), 2, "only --data-free goes without samples"),
        (("--data-free", "--data", "x"), 1, "leave out --data or --data-free"),
        (("--data", "x", "--synthesis", "generator"), 1, "needs 'data_free'; set that too"),
        (("--data", "x", "--generator", "g"), 1, "add --data-free"),
        (("--data", "x", "--max-minutes", 3), 2, "for generating images; add --data-free"),
        (("--data-free", "--generator", "g", "--synthesis-loss", "bn=2"), 1, "as it was trained"),
        (("--data-free", "--synthesis-loss", "inception=0"), 1, "switches off all"),
    ],
)
def test_where_samples_come_from_is_said_once(onnxq, mlp, flags, code, sentence):
    done = onnxq("sensitivity", mlp, *flags, *FAST)
    assert done.code == code and done.out == ""
    assert sentence in " ".join(done.err.split())


def test_excluded_layers_have_no_row(onnxq, mlp, unlabelled):
    arguments = ("sensitivity", mlp, "--data", unlabelled, *FAST, "--json")
    names = [layer["layers"] for layer in json.loads(onnxq(*arguments).out)["layers"]]
    done = onnxq(*arguments, "--exclude", names[0][0])
    assert [layer["layers"] for layer in json.loads(done.out)["layers"]] == names[1:]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--exclude", "nothing"), "pattern 'nothing' matches no layer"),
        (("--exclude", "*"), "nothing to quantize"),
        (("--samples", 2), "give more samples"),
        (("--samples", 1), "give more samples"),
        (("--weight-bits", 1), "'weight_bits'"),
    ],
)
def test_what_cannot_be_tried_is_one_sentence(onnxq, mlp, unlabelled, flags, sentence):
    done = onnxq("sensitivity", mlp, "--data", unlabelled, *flags)
    assert done.code == 1 and done.out == ""
    assert sentence in done.err and len(done.err.strip().splitlines()) == 1


def test_files_are_not_overwritten_unasked(onnxq, mlp, unlabelled, tmp_path):
    out, folder = tmp_path / "table.json", tmp_path / "report"
    folder.mkdir()
    arguments = ("sensitivity", mlp, "--data", unlabelled, *FAST, "-q")
    for path, flags in ((out, ("-o", out)), (folder / "sensitivity.csv", ("--report", folder))):
        path.write_text("mine")
        done = onnxq(*arguments, *flags)
        assert done.code == 1 and "--force" in done.err and path.read_text() == "mine"
        assert onnxq(*arguments, *flags, "--force").code == 0
        assert path.read_text() != "mine"
    assert "is the model" in onnxq(*arguments, "-o", mlp, "--force").err


def test_ctrl_c_ends_it(sample_models, unlabelled):
    model = sample_models / "digits_resnet.onnx"
    arguments = command("sensitivity", model, "--data", unlabelled, *FAST, "-v")
    process = start(arguments)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("try each layer alone:"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err and out == ""
