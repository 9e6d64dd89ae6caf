from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx_ir as ir
import psutil
import pytest

from onnxq.errors import OutputError
from onnxq.export.save import save_model
from onnxq.options.recipe import Recipe, save_recipe
from onnxq.runtime import temporary


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(temporary, "_SWEPT", set())
    return tmp_path


def left_by(process: int, hidden: str, machine: str | None = None) -> str:
    name = temporary._prefix(None).split("-")
    return f"{hidden}onnxq-{machine or name[1]}-{process}-abc"


@pytest.mark.parametrize("beside", [False, True])
def test_what_a_dead_process_left_is_swept(folder, beside):
    dead = next(p for p in range(400_000, 2, -1) if not psutil.pid_exists(p))
    gone = left_by(dead, "."), left_by(dead, "")
    kept = left_by(1, "."), left_by(os.getppid(), ""), left_by(dead, "", "0" * 8), "onnxq-abc"
    for name in (*gone, *kept):
        (folder / name).mkdir()
        (folder / name / "file").touch()
    (folder / f"{gone[1]}.weights").touch()
    with temporary.temporary_folder(folder if beside else None) as made:
        assert made.parent == folder
        assert {p.name for p in folder.iterdir()} == {*kept, made.name}
    assert {p.name for p in folder.iterdir()} == set(kept)


def test_a_file_is_written_whole_or_not_at_all(folder, monkeypatch):
    path = folder / "recipe.toml"
    path.write_text("before")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", lambda *_: os.open(folder / "no" / "such", os.O_RDONLY))
        with pytest.raises(OutputError, match="Can't write the recipe"):
            save_recipe(Recipe(), path)
    assert path.read_text() == "before"
    assert list(folder.iterdir()) == [path]
    save_recipe(Recipe(), path)
    assert "weight_bits" in path.read_text()


def test_a_link_is_followed(folder, sample_models):
    (folder / "kept").mkdir()
    target = folder / "kept" / "target.onnx"
    target.write_text("before")
    link = folder / "link.onnx"
    link.symlink_to(target)
    save_model(ir.load(sample_models / "digits_mlp.onnx"), link)
    assert link.is_symlink()
    assert len(ir.load(target).graph)
