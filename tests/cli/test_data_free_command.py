from __future__ import annotations

import json
import re
import signal
import time

import pytest
from PIL import Image

from onnxq.errors import OutputError
from onnxq.options.recipe import load_recipe
from tests.cli.conftest import command, start

SHORT = ("--samples", 64, "--learn", "none")


def test_a_model_is_compressed_with_no_data(onnxq_process, mlp, labelled, tmp_path):
    out, report, recipe = tmp_path / "o.onnx", tmp_path / "report", tmp_path / "r.toml"
    done = onnxq_process(
        "compress", mlp, "--data-free", "-o", out, *SHORT, "--report", report, "-v",
        "--synthesis-loss", "inception=5", "--save-recipe", recipe,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.last.startswith(f"wrote {out}: ")
    assert re.search(r"samples +64 generated from the model alone, 32 held out", done.out)
    assert "note: the model has no BatchNormalization" in done.out
    assert re.search(r"images: \d+/\d+ inception -", done.err)
    # The report shows the images, their classes and the loss.
    with Image.open(report / "images.png") as sheet:
        assert sheet.width > 8 * 64
    page = (report / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "Inception score loss, by minutes of generating images" in page
    assert "class 9: " in page
    synthesis = json.loads((report / "report.json").read_text())["figures"]["synthesis"]
    assert sum(synthesis["classes"]) == synthesis["count"] == 64
    assert synthesis["weights"] == {"inception": 5.0}
    minutes = synthesis["minutes"]
    assert len(synthesis["losses"]["inception"]) == len(minutes) == synthesis["steps"]
    assert minutes[0] == 0 and minutes == sorted(minutes) and minutes[-1] > 0
    # The recipe that was used makes the same bytes.
    assert load_recipe(recipe).data_free
    again = tmp_path / "again.onnx"
    done = onnxq_process("compress", mlp, "--recipe", recipe, "-o", again, "-q", *SHORT)
    assert done.code == 0, done.err
    assert again.read_bytes() == out.read_bytes()
    # It decides as the original does on real images.
    found = onnxq_process("evaluate", out, "--data", labelled, "--reference", mlp, "--json")
    assert json.loads(found.out)["agreement"] > 97


def test_a_generator_is_kept_and_used_again(onnxq_process, mlp, tmp_path):
    kept, out = tmp_path / "generator.onnx", tmp_path / "o.onnx"
    first = onnxq_process(
        "compress", mlp, "--data-free", "--synthesis", "generator", "--save-generator", kept,
        "-o", out, "--max-minutes", 0.02, "--report", tmp_path / "report", *SHORT,
    )  # fmt: skip
    assert first.code == 0, first.err
    # How many steps the time holds depends on the machine.
    steps = re.search(r"(\d+) of 600 steps of the generator", first.out)
    assert steps and 20 <= int(steps[1]) < 600
    page = (tmp_path / "report" / "report.html").read_text()
    assert f"by a generator in {steps[1]} steps" in page
    again = ("compress", mlp, "--data-free", "--generator", kept, "-o", tmp_path / "p.onnx", *SHORT)
    second = onnxq_process(*again, "--weight-bits", 4)
    assert second.code == 0, second.err
    assert "64 generated from the model alone" in second.out
    assert "steps of the generator" not in second.out
    # It goes on learning from there, against the student.
    third = onnxq_process(
        *again[:6], tmp_path / "q.onnx", "--synthesis", "generator", "--samples", 64, "-v",
        "--generator-mode", "adversarial", "--synthesis-loss", "adversarial=3", "--epochs", 2,
        "--learn", "steps", "--weight-bits", 4, "--activation-bits", 4, "--json",
    )  # fmt: skip
    assert third.code == 0, third.err
    tuned = json.loads(third.out)["figures"]["synthesis"]["tuning"]
    assert set(tuned) == {"inception", "adversarial"}
    assert all(len(losses) == 2 for losses in tuned.values())
    refused = onnxq_process(*again[:4], mlp, *again[5:], "--force")
    assert refused.code == 1
    assert "give one that --save-generator wrote" in refused.err


@pytest.mark.parametrize("verb", ["compress", "distill"])
def test_a_generator_that_can_not_be_written_costs_no_result(
    onnxq, mlp, tmp_path, monkeypatch, verb
):
    def full(*_: object) -> None:
        raise OutputError("can't write 'g.onnx' (No space left on device); free some space")

    monkeypatch.setattr("onnxq.export.save.save_model", full)
    done = onnxq(
        verb, mlp, *[mlp] * (verb == "distill"), "--data-free", "--synthesis", "generator",
        "--save-generator", tmp_path / "g.onnx", "-o", tmp_path / "o.onnx", "--max-minutes", 0.01,
        *SHORT[:2 if verb == "distill" else None],
    )  # fmt: skip
    assert done.code == 1
    assert done.err == "Error: Can't write 'g.onnx' (No space left on device); free some space.\n"
    assert done.last.startswith(f"wrote {tmp_path / 'o.onnx'}")
    assert [path.name for path in tmp_path.iterdir()] == ["o.onnx"]


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        ((), 2, "only --data-free and --dry-run go without samples"),
        (("--data-free", "--data", "x"), 1, "leave out --data or --data-free"),
        (("--data", "x", "--synthesis-loss", "bn=1"), 1, "needs 'data_free'; set that too"),
        (("--data-free", "--synthesis-loss", "bm=1"), 1, "'inception', 'bn', 'bn-moments'"),
        (("--data-free", "--synthesis-loss", "bn=-1"), 1, "numbers of at least 0"),
        (("--data-free", "--synthesis-loss", "inception=0"), 1, "switches off all"),
        (
            ("--data", "x", "--synthesis", "generator"),
            1,
            "'synthesis' = 'generator' needs 'data_free'",
        ),
        (("--data", "x", "--generator", "g"), 1, "add --data-free"),
        (("--data-free", "--save-generator", "g"), 1, "add --synthesis generator"),
        (("--data-free", "--generator", "g", "--save-generator", "h"), 1, "is not changed"),
        (("--data-free", "--generator", "g", "--synthesis-loss", "bn=2"), 1, "as it was trained"),
        (("--data-free", "--generator", "g"), 1, '"g" can\'t be read'),
        (("--data", "x", "--generator-mode", "adversarial"), 1, "needs 'data_free'; set that too"),
        (("--data-free", "--generator-mode", "adversarial"), 1, "needs 'synthesis' = 'generator'"),
    ],
)
def test_what_can_not_go_together_is_said(onnxq, mlp, tmp_path, flags, code, sentence):
    done = onnxq("compress", mlp, "-o", tmp_path / "o.onnx", *flags, *SHORT)
    assert done.code == code
    assert sentence in " ".join(done.err.split())
    assert list(tmp_path.iterdir()) == []


def test_images_that_are_finished_outlive_ctrl_c(sample_models, tmp_path):
    out = tmp_path / "o.onnx"
    resnet = sample_models / "digits_resnet.onnx"
    arguments = command("compress", resnet, "--data-free", "-o", out, "--samples", 4096, "-v")
    process = start(arguments)
    folder = tmp_path / "o.onnx.onnxq-checkpoint"
    try:
        for _ in range(900):
            if (folder / "images-0.npz").exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "--resume" in err
    assert not out.exists()
    assert (folder / "images-0.npz").exists()
