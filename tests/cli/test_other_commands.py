from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from onnxq.cli import main
from onnxq.errors import ModelError
from tests.cli.conftest import command, environment, start


def test_inspect_lists_layers_and_reasons(onnxq, sample_models):
    done = onnxq("inspect", sample_models / "digits_mobilenet.onnx")
    assert done.code == 0, done.err
    assert "input input: float32 (N, 1, 8, 8)" in done.out
    assert "layers" in done.out
    assert "BatchNormalization" in done.out


def test_inspect_shows_recipe_and_figures_of_a_compressed_file(onnxq, compressed):
    done = onnxq("inspect", compressed)
    assert done.code == 0, done.err
    assert "written by onnxq" in done.out
    assert '"fallback": true' in done.out and '"samples": 128' in done.out
    assert "agreement" in done.out
    fields = json.loads(onnxq("inspect", compressed, "--json").out)
    assert fields["recipe"]["learn"] == ["none"]
    assert fields["preprocess"]["layout"] == "nchw"
    assert fields["figures"]["size_after"] == compressed.stat().st_size
    assert fields["figures"]["latency_after_ms"] is None
    assert {layer["compute"] for layer in fields["layers"]} == {"integer"}


def test_inspect_json_of_a_float_model(onnxq, mlp):
    fields = json.loads(onnxq("inspect", mlp, "--json").out)
    assert fields["version"] is None
    assert fields["parameters"] == sum(fields_parameters(fields))


def fields_parameters(fields):
    """Weights by layer, and the biases that make up the rest."""
    weights = sum(layer["parameters"] for layer in fields["layers"])
    return [weights, fields["parameters"] - weights]


class Rows(CalibrationDataReader):
    """Two samples for ONNX Runtime's own quantizer."""

    def __init__(self) -> None:
        self.left = [{"input": np.full((1, 1, 8, 8), value, np.float32)} for value in (0, 1)]

    def get_next(self):
        return self.left.pop() if self.left else None


@pytest.mark.parametrize(
    ("form", "operator"), [("QDQ", "DequantizeLinear"), ("QOperator", "QuantizeLinear")]
)
def test_inspect_of_a_model_that_another_tool_quantized(onnxq, mlp, tmp_path, form, operator):
    path = tmp_path / "foreign.onnx"
    quantize_static(mlp, path, Rows(), quant_format=QuantFormat[form])
    for flags in ((), ("--json",)):
        done = onnxq("inspect", path, *flags)
        assert done.code == 1
        assert done.out == ""
        assert "is already quantized (node " in done.err
        assert f'is a "{operator}"), where a float model is expected' in done.err
        assert done.err.strip().count("\n") == 0


@pytest.mark.parametrize("command", ["evaluate", "compare", "benchmark"])
def test_quiet_leaves_out_the_table(onnxq, mlp, compressed, labelled, command):
    data = ("--data", labelled, "--samples", 20)
    rest = {"evaluate": data, "compare": (compressed, *data), "benchmark": ("--rounds", 1)}[command]
    assert "─" in onnxq(command, mlp, *rest).out
    done = onnxq(command, mlp, *rest, "-q")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert json.loads(onnxq(command, mlp, *rest, "-q", "--json").out)


def test_evaluate_needs_no_flags_on_a_compressed_file(onnxq, compressed, labelled, mlp):
    done = onnxq("evaluate", compressed, "--data", labelled, "--reference", mlp)
    assert done.code == 0, done.err
    assert "drop, paired, points" in done.out
    arguments = ("--data", labelled, "--reference", mlp, "--samples", 100, "--json")
    fields = json.loads(onnxq("evaluate", compressed, *arguments).out)
    assert fields["samples"] == 100
    assert fields["agreement"] >= 95
    assert fields["top1"] >= 85


def test_evaluate_takes_preprocessing_from_flags(onnxq, mlp, labelled):
    right = json.loads(onnxq("evaluate", mlp, "--data", labelled, "--json").out)
    flags = ("--mean", "50", "--std", "0.1")
    wrong = json.loads(onnxq("evaluate", mlp, "--data", labelled, "--json", *flags).out)
    assert wrong["top1"] < right["top1"] - 20


def test_one_flag_changes_one_setting(onnxq, mlp, labelled):
    found = json.loads(onnxq("evaluate", mlp, "--data", labelled, "--json", "--crop", 8).out)
    assert found == json.loads(onnxq("evaluate", mlp, "--data", labelled, "--json").out)


def test_a_lone_mean_needs_a_std(onnxq, mlp, labelled, tmp_path):
    import onnx_ir as ir

    model = ir.load(mlp)
    model.metadata_props.clear()
    ir.save(model, tmp_path / "bare.onnx")
    done = onnxq("evaluate", tmp_path / "bare.onnx", "--data", labelled, "--mean", "0.5")
    assert done.code == 1
    assert "both --mean and --std" in done.err


def test_compare_lists_the_layers_worst_first(onnxq, compressed, unlabelled, mlp):
    arguments = ("compare", mlp, compressed, "--data", unlabelled, "--samples", 40)
    done = onnxq(*arguments)
    assert done.code == 0, done.err
    assert "3 layers on 40 samples" in done.out
    lines = done.out.splitlines()
    shown = [float(line.split()[4]) for line in lines if " Gemm " in line]
    assert len(shown) == 3
    assert shown == sorted(shown)
    assert [line.split()[:2] for line in lines if " output " in line] == [["logits", "output"]]
    fields = json.loads(onnxq(*arguments, "--json").out)
    assert fields["outputs"]["logits"] > 20
    found = [layer["sqnr_db"] for layer in fields["layers"]]
    assert found == pytest.approx(shown, abs=0.06)


def test_compare_takes_preprocessing_from_flags(onnxq, compressed, unlabelled, mlp):
    arguments = ("compare", mlp, compressed, "--data", unlabelled, "--samples", 40, "--json")
    right = json.loads(onnxq(*arguments).out)["outputs"]["logits"]
    wrong = json.loads(onnxq(*arguments, "--mean", "50", "--std", "0.1").out)["outputs"]["logits"]
    assert wrong < right - 10


def test_benchmark_prints_a_line_per_model(onnxq, mlp, compressed):
    done = onnxq("benchmark", mlp, compressed, "--rounds", 5)
    assert done.code == 0, done.err
    assert "5 interleaved runs" in done.out
    first, second = json.loads(onnxq("benchmark", mlp, compressed, "--rounds", 5, "--json").out)
    assert first["ratio"] == 1
    assert second["size"] == compressed.stat().st_size
    assert second["latency"]["median_ms"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["benchmark"], 2, "Missing argument"),
        (["benchmark", "absent.onnx"], 1, "does not exist"),
        (["benchmark", "{mlp}", "--shape", "input"], 2, "is not a shape"),
        (["benchmark", "{mlp}", "--shape", "input=1,2,3,4"], 1, "does not fit"),
        (["inspect", "{text}"], 1, "is not an ONNX model"),
        (["evaluate", "{mlp}", "--data", "{rows}"], 1, "label"),
        (["evaluate", "{mlp}", "--data", "{labels}"], 1, "'99' is not a class"),
        (["evaluate", "{mlp}", "--data", "{rows}", "--reference", "no.onnx"], 1, "no.onnx"),
        (["compare", "{mlp}"], 2, "Missing argument"),
        (["compare", "{mlp}", "{mlp}"], 2, "--data"),
        (["compare", "{mlp}", "no.onnx", "--data", "{rows}"], 1, "no.onnx"),
        (["compare", "{mlp}", "{mlp}", "--data", "{rows}"], 1, "was not written by onnxq"),
        (["compare", "{mlp}", "{file}", "--data", "absent"], 1, "absent"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_errors_are_one_sentence(onnxq, mlp, compressed, rows, tmp_path, arguments, code, sentence):
    text, labels = tmp_path / "text.onnx", tmp_path / "labels.npz"
    text.write_text("hello")
    with np.load(rows) as arrays:
        np.savez(labels, input=arrays["input"], labels=np.full(40, 99))
    places = {"mlp": mlp, "rows": rows, "text": text, "labels": labels, "file": compressed}
    done = onnxq(*(each.format(**places) for each in arguments))
    assert done.code == code
    assert sentence in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ZeroDivisionError("ours"), "Internal error: ZeroDivisionError in test_other_commands.py"),
        (MemoryError(), "There is not enough memory for this model"),
        (OSError(errno.ENOSPC, "No space left", "x"), "Can't write 'x' (No space left); free"),
        (ModelError("\x1b[2Ja\n\u202eb \udce9"), "\\x1b[2Ja \\u202eb \\udce9."),
        (ModelError("a" * 3000 + "; do this"), "aaa...aaa"),
    ],
)
def test_an_error_is_one_line_of_plain_text(mlp, monkeypatch, error, text):
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr("onnxq.report.inspection.inspect", broken)
    done = CliRunner().invoke(main, ["inspect", str(mlp)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert text in done.stderr
    assert len(done.stderr) < 1100
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_is_exit_code_130(onnxq, mlp, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxq.report.inspection.inspect", stop)
    done = onnxq("inspect", mlp)
    assert done.code == 130
    assert done.err.strip() == "stopped"


@pytest.mark.parametrize("library", ["numpy", "onnxruntime", "onnxsim"])
def test_ctrl_c_while_libraries_load_is_exit_code_130(tmp_path, mlp, library):
    # A library that loads until it is stopped, and takes that for an error of its own.
    (tmp_path / f"{library}.py").write_text(
        "import time\nprint('loads', flush=True)\n"
        "try:\n    time.sleep(60)\nexcept BaseException:\n    raise ImportError from None\n"
    )
    paths = {"PYTHONPATH": os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])}
    process = start(command("inspect", mlp), env=environment() | paths)
    assert process.stdout.readline() == "loads\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said.strip()) == (130, "stopped")


def test_help_and_version(onnxq_process, tmp_path: Path):
    assert "compress" in onnxq_process("--help").out
    assert onnxq_process("--version").out.startswith("onnxq, version ")


def test_a_terminal_without_unicode_gets_the_table_all_the_same(mlp, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = subprocess.run(
        command("benchmark", mlp, "--rounds", 1), capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert "1.00 ?" in done.stdout
