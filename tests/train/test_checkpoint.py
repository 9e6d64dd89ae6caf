"""State on disk."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from onnxq.errors import OutputError
from onnxq.train.checkpoint import Checkpoint

ARRAYS = {"epoch": np.array(3), "value/width:a/b": np.arange(4, dtype=np.float32)}


def test_what_is_saved_is_loaded(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state", {"model": "m", "recipe": "r"})
    assert checkpoint.load() is None
    checkpoint.save({"epoch": np.array(1)})
    checkpoint.save(ARRAYS)
    found = Checkpoint(tmp_path / "state", {"recipe": "r", "model": "m"}).load()
    assert found is not None
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_the_state_of_another_run_is_refused_and_says_why(tmp_path):
    Checkpoint(tmp_path / "state", {"model": "m", "recipe": "r", "data": "d"}).save(ARRAYS)
    other = Checkpoint(tmp_path / "state", {"model": "m", "recipe": "s", "data": "e"})
    with pytest.raises(OutputError, match=r"different: data, recipe.*leave out --resume"):
        other.load()


def test_a_stop_while_saving_leaves_the_state_before(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "state", {"model": "m"})
    checkpoint.save(ARRAYS)

    def stopped(file, **_: object) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", stopped)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save({"epoch": np.array(4)})
    found = checkpoint.load()
    assert found is not None
    assert int(found["epoch"]) == 3


def test_discarding_leaves_nothing_and_may_be_repeated(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state", {"model": "m"})
    checkpoint.save(ARRAYS)
    checkpoint.discard()
    checkpoint.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_state_is_named(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state", {"model": "m"})
    checkpoint.save(ARRAYS)
    whole = (tmp_path / "state" / "state.npz").read_bytes()
    for data in (b"", b"garbage", whole[: len(whole) // 2]):
        (tmp_path / "state" / "state.npz").write_bytes(data)
        with pytest.raises(OutputError, match=r"state' can't be read.*leave out --resume"):
            checkpoint.load()


def test_a_full_disk_keeps_the_state_before_and_nothing_else(tmp_path, monkeypatch):
    def full(file, **_: object) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoint = Checkpoint(tmp_path / "state", {"model": "m"})
    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", full)
        with pytest.raises(OutputError, match=r"can't write the checkpoint .*No space left"):
            checkpoint.save(ARRAYS)
    assert list(tmp_path.iterdir()) == []
    checkpoint.save(ARRAYS)
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OutputError):
        checkpoint.save({"epoch": np.array(4)})
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["state.npz"]
