"""Files: whole or not at all, and never over what was not asked for."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from small_graphs import quantize, serialised, small_graph

from onnxq.errors import OutputError
from onnxq.export import save
from onnxq.export.interface import add_metadata, describe
from onnxq.export.save import (
    check_output,
    model_bytes,
    save_model,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def exported():
    return quantize(small_graph("residual")).exported


def test_a_saved_file_is_valid_and_of_the_size_that_was_said(exported, tmp_path):
    path = tmp_path / "out.onnx"
    size = save_model(exported, path)
    assert size == path.stat().st_size == model_bytes(exported)
    onnx.checker.check_model(str(path), full_check=True)
    assert path.read_bytes() == serialised(exported)
    assert names(tmp_path) == ["out.onnx"]


def test_saving_twice_gives_the_same_bytes(exported, tmp_path):
    save_model(exported, tmp_path / "a.onnx")
    save_model(exported, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_full_disk_leaves_the_old_file_and_nothing_else(exported, tmp_path, monkeypatch):
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"out\.onnx.*No space left"):
        save_model(exported, path)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["out.onnx"]


def test_a_stop_while_writing_leaves_nothing(exported, tmp_path, monkeypatch):
    def stopped(self: Path, data: bytes) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", stopped)
    with pytest.raises(KeyboardInterrupt):
        save_model(exported, tmp_path / "out.onnx")
    assert names(tmp_path) == []


def test_a_folder_that_can_not_be_written_is_named(exported, tmp_path, monkeypatch):
    def refused(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(save.tempfile, "mkdtemp", refused)
    with pytest.raises(OutputError, match="Permission denied"):
        save_model(exported, tmp_path / "out.onnx")


def test_weights_beyond_protobufs_limit_go_beside_the_model(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(save, "PROTOBUF_LIMIT", 100)
    path = tmp_path / "big.onnx"
    before = serialised(exported)
    size = save_model(exported, path)
    assert names(tmp_path) == ["big.onnx", "big.onnx.data"]
    assert size == sum(file.stat().st_size for file in tmp_path.iterdir())
    onnx.checker.check_model(str(path))
    assert serialised(exported) == before


def test_an_existing_file_needs_force(tmp_path):
    model, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    model.touch()
    out.touch()
    with pytest.raises(OutputError, match=r"out\.onnx' exists.*--force"):
        check_output(out, model, force=False)
    check_output(out, model, force=True)


@pytest.mark.parametrize("force", [True, False])
def test_the_model_itself_is_never_overwritten(tmp_path, force):
    model = tmp_path / "model.onnx"
    model.touch()
    for same in (model, tmp_path / "." / "model.onnx"):
        with pytest.raises(OutputError, match="is the model itself"):
            check_output(same, model, force)
    link = tmp_path / "link.onnx"
    link.symlink_to(model)
    with pytest.raises(OutputError, match="is the model itself"):
        check_output(link, model, force)


def test_checking_leaves_nothing_behind(tmp_path):
    model = tmp_path / "model.onnx"
    model.touch()
    check_output(tmp_path / "out.onnx", model, force=False)
    assert names(tmp_path) == ["model.onnx"]


def test_folders_are_named(tmp_path, monkeypatch):
    model = tmp_path / "model.onnx"
    model.touch()
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path, model, force=True)
    with pytest.raises(OutputError, match=r"'.*missing' of the output does not exist"):
        check_output(tmp_path / "missing" / "out.onnx", model, force=False)

    def refused(*_: object, **__: object) -> object:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(save.tempfile, "TemporaryFile", refused)
    with pytest.raises(OutputError, match=r"out\.onnx.*Permission denied"):
        check_output(tmp_path / "out.onnx", model, force=False)


def test_metadata_is_merged_in_sorted_order():
    model = small_graph("relu")
    model.metadata_props["z"] = "kept"
    add_metadata(model, {"b": "2", "a": "1"})
    add_metadata(model, {"a": "3"})
    assert list(model.metadata_props.items()) == [("a", "3"), ("b", "2"), ("z", "kept")]


@pytest.mark.parametrize("padding", range(8))
def test_metadata_may_state_the_size_of_the_file_that_holds_it(tmp_path, padding):
    # Somewhere among these the number's own digits take it past a power of ten.
    model = small_graph("relu")
    empty = model_bytes(model)
    padded = "x" * (10_000 - empty - 20 + padding)
    size = describe(model, lambda size: {"own": f"{padded}{size}"})
    assert size == model_bytes(model) == save_model(model, tmp_path / "m.onnx")
    assert model.metadata_props["own"] == f"{padded}{size}"


def test_the_models_external_data_is_never_overwritten(tmp_path):
    model, data = tmp_path / "model.onnx", tmp_path / "weights.bin"
    ir.save(small_graph("residual"), model, external_data=data.name)
    assert data.exists()
    with pytest.raises(OutputError, match="is the model's external data"):
        check_output(data, model, force=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of POSIX")
def test_what_is_no_regular_file_is_never_replaced(tmp_path):
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match="is not a regular file"):
        check_output(pipe, tmp_path / "model.onnx", force=True)


def test_a_name_leaves_room_for_that_of_the_checkpoint(tmp_path):
    with pytest.raises(OutputError, match="longer than 200 bytes"):
        check_output(tmp_path / ("o" * 300), tmp_path / "model.onnx", force=False)
    check_output(tmp_path / ("o" * 200), tmp_path / "model.onnx", force=False)
