from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from onnxq.cli import main

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        return self.out.strip().splitlines()[-1]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "onnxq", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def start(arguments: list[str], **settings: Any) -> subprocess.Popen[str]:
    """A process that Ctrl-C reaches.

    A shell starts what it puts in the background with Ctrl-C ignored, tests included.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment()}
    return subprocess.Popen(
        arguments,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **(pipes | settings),
    )


@pytest.fixture
def onnxq_process() -> Callable[..., Finished]:
    """Run the command in a process of its own."""

    def run(*arguments: object) -> Finished:
        done = subprocess.run(
            command(*arguments), capture_output=True, text=True, env=environment(), timeout=100
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def onnxq() -> Callable[..., Finished]:
    """Run the command in this process, which saves its start."""

    def run(*arguments: object) -> Finished:
        result: Result = CliRunner().invoke(main, [str(each) for each in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert "Internal error" not in result.stderr, result.stderr
        return Finished(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture(scope="session")
def mlp(sample_models: Path) -> Path:
    return sample_models / "digits_mlp.onnx"


@pytest.fixture(scope="session")
def unlabelled(sample_models: Path) -> Path:
    return sample_models / "digits" / "unlabelled"


@pytest.fixture(scope="session")
def labelled(sample_models: Path) -> Path:
    return sample_models / "digits" / "labelled"


@pytest.fixture(scope="session")
def compressed(mlp: Path, unlabelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The MLP, compressed once for all tests."""
    path = tmp_path_factory.mktemp("compressed") / "mlp.onnx"
    arguments = ["compress", str(mlp), "--data", str(unlabelled), "-o", str(path), "-q"]
    result = CliRunner().invoke(main, [*arguments, "--samples", "128", "--learn", "none"])
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Samples for the MLP as an array."""
    path = tmp_path / "rows.npz"
    values = np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32)
    np.savez(path, input=values)
    return path
