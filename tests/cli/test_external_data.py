"""What leads out of a model's folder is refused by every command; benchmarks/ has all cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.load.test_external import (
    VALUES,
    attribute,
    function,
    initializer,
    outside,
    sparse,
    sub_graph,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a good model and samples, and beside it a file that nobody may read."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(VALUES.tobytes())
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path, target_is_directory=True)
    good = initializer(onnx.numpy_helper.from_array(VALUES, "w"))
    (folder / "good.onnx").write_bytes(good.SerializeToString())
    np.savez(folder / "x.npz", x=VALUES, labels=np.arange(4))
    return folder


@pytest.mark.parametrize(
    ("place", "location", "arguments"),
    [
        (initializer, "../secret", "compress bad.onnx --data x.npz"),
        (attribute, "link", "compress bad.onnx --dry-run"),
        (sub_graph, "sub/../../secret", "inspect bad.onnx"),
        (function, "up/secret", "evaluate bad.onnx --data x.npz"),
        (attribute, "hard", "evaluate good.onnx --data x.npz --reference bad.onnx"),
        (function, "../secret", "compare bad.onnx good.onnx --data x.npz"),
        (sub_graph, "{absolute}", "compare good.onnx bad.onnx --data x.npz"),
        (sparse, "up/secret", "benchmark good.onnx bad.onnx"),
        (sub_graph, "link", "sensitivity bad.onnx --data x.npz"),
        (attribute, "../secret", "distill bad.onnx good.onnx --data x.npz"),
        (function, "sub/../../secret", "distill good.onnx bad.onnx --data x.npz"),
        (initializer, "../secret", "compress good.onnx --data-free --generator bad.onnx"),
    ],
)
def test_no_command_reads_a_file_outside(onnxq, folder, monkeypatch, place, location, arguments):
    monkeypatch.chdir(folder)
    named = location.format(absolute=folder.parent / "secret")
    Path("bad.onnx").write_bytes(place(outside(named)).SerializeToString())
    if location == "hard":
        # Whatever way it is named, a file with two names is refused.
        Path(location).hardlink_to(folder.parent / "secret")
    before = sorted(folder.iterdir())
    done = onnxq(*arguments.split())
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert 'The external data of "bad.onnx" can\'t be read' in line
    assert sorted(folder.iterdir()) == before


def test_no_sample_names_another_file(onnxq, folder, monkeypatch):
    monkeypatch.chdir(folder)
    Path("x").mkdir()
    Path("x/input_0.pb").write_bytes(outside("../secret").SerializeToString())
    done = onnxq("benchmark", "good.onnx", "--data", "x")
    assert done.code == 1 and "values in another file" in done.err
