"""What the command line loads before a command runs, and that it completes names all the same."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.cli.conftest import command, environment

HEAVY = {"PIL", "jinja2", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxsim", "rich", "sympy"}
LOADED = "import sys; print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("compress", "--help")])
def test_help_loads_nothing_heavy(arguments) -> None:
    code = (
        f"import atexit, sys; atexit.register(lambda: exec({LOADED!r})); "
        f"from onnxq.__main__ import start; sys.argv[1:] = {arguments!r}; start()"
    )
    loaded = loaded_by(code)
    assert "click" in loaded
    assert loaded & (HEAVY | {"sklearn"}) == set()


def test_package_loads_nothing_heavy() -> None:
    assert loaded_by(f"import onnxq; {LOADED}") & (HEAVY | {"sklearn", "click"}) == set()


def test_commands_that_quantize_nothing_load_no_simplifier(mlp) -> None:
    run = ["benchmark", str(mlp), "--rounds", "1", "--quiet"]
    loaded = loaded_by(f"from onnxq.cli import main; main({run}, standalone_mode=False); {LOADED}")
    assert "onnx_ir" in loaded
    assert "onnxsim" not in loaded


@pytest.mark.parametrize(
    ("words", "wanted"),
    [("onnxq com", {"compress", "compare"}), ("onnxq compress --dry", {"--dry-run"})],
)
def test_shell_completion(words: str, wanted: set[str]) -> None:
    asked = {
        "_ONNXQ_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run(command(), capture_output=True, text=True, env=environment() | asked)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == wanted


def test_a_damaged_runtime_is_one_sentence(mlp, unlabelled, tmp_path) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    paths = {"PYTHONPATH": os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])}
    done = subprocess.run(
        command("compress", mlp, "--data", unlabelled, "-o", tmp_path / "o.onnx"),
        capture_output=True,
        text=True,
        env=environment() | paths,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: The package 'onnxruntime' is damaged")
    assert done.stderr.strip().count("\n") == 0
