from __future__ import annotations

import os
import subprocess
import sys

import pytest

from onnxq.errors import OutputError
from onnxq.export.save import lock_path, locked


def test_the_second_run_is_told(tmp_path):
    out = tmp_path / "o.onnx"
    with (
        locked(out),
        pytest.raises(OutputError, match=f"another run .process {os.getpid()}. is writing"),
        locked(out),
    ):
        pass
    assert not lock_path(out).exists()
    with locked(out), locked(tmp_path / "other.onnx"), locked(None):
        assert lock_path(out).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_link_and_its_target_are_one_output(tmp_path):
    (tmp_path / "o.onnx").touch()
    (tmp_path / "link").symlink_to("o.onnx")
    with locked(tmp_path / "o.onnx"), pytest.raises(OutputError), locked(tmp_path / "link"):
        pass


def test_what_a_killed_run_leaves_is_taken_over(tmp_path):
    out = tmp_path / "o.onnx"
    code = "import os, pathlib, sys; from onnxq.export.save import locked\n"
    code += "with locked(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code, str(out)], check=False)
    assert done.returncode == -9
    assert lock_path(out).exists()
    with locked(out):
        pass
    assert list(tmp_path.iterdir()) == []
