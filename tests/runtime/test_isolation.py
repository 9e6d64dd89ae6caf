from __future__ import annotations

import ctypes
import os
import threading
import time

import pytest

from onnxq.runtime import isolation
from onnxq.runtime.isolation import Crash, Failure, isolated


def plus(a: int, b: int) -> int:
    return a + b


def end_badly(how: str) -> object:
    if how == "SIGSEGV":
        return ctypes.string_at(0)
    if how == "SIGABRT":
        os.abort()
    if how == "code 7":
        os._exit(7)
    if how == "seconds":
        time.sleep(60)
    while how == "computing":
        pass
    if how == "memory":
        return len(bytearray(2**31))
    raise ValueError(how)


@pytest.fixture(params=["forked", "spawned"])
def way(request, monkeypatch):
    if request.param == "spawned":
        monkeypatch.setattr(threading, "active_count", lambda: 2)


def test_what_a_function_returns(way):
    assert isolated(plus, 3, 4) == 7


@pytest.mark.parametrize("how", ["SIGSEGV", "SIGABRT", "code 7"])
def test_a_crash(way, how, capfd):
    with pytest.raises(Crash, match=how):
        isolated(end_badly, how)
    assert capfd.readouterr() == ("", "")


def test_an_exception_and_too_much_memory(way, monkeypatch):
    with pytest.raises(Failure, match="oh no"):
        isolated(end_badly, "oh no")
    monkeypatch.setattr(isolation, "MEMORY", 2**29)
    with pytest.raises(Failure, match="too much memory"):
        isolated(end_badly, "memory")


def test_one_that_takes_too_long(way, monkeypatch):
    with pytest.raises(Crash, match=r"computed for more than 1 seconds"):
        isolated(end_badly, "computing", seconds=0.9)
    monkeypatch.setattr(isolation, "PATIENCE", 1)
    with pytest.raises(Crash, match=r"more than 0 seconds"):
        isolated(end_badly, "seconds", seconds=0.2)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
