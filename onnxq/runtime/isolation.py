"""A function in a child process, which native code may crash without ending this one.

ONNX Runtime and ONNX's own C++ trust a model's file, and a damaged one can end the process or use
up all memory. The child is forked, which takes milliseconds, where nothing else runs beside it.
Otherwise, and where a system's libraries do not survive a fork, it is a new interpreter.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import math
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import psutil

SECONDS = 15.0
"""Of computing, after which a child is ended."""

PATIENCE = 8.0
"""Times as long a child may take by the clock, on a machine that has other work."""

MEMORY = 4 * 2**30
"""Bytes that a child may take beside what this process has."""

_FAILED = 3
_CHILD = (
    "import sys, pickle; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from onnxq.runtime.isolation import answer; answer()"
)

Function = Callable[..., Any]


class Crash(Exception):
    """The child ended without an answer; the text says how."""


class Failure(Exception):
    """The function raised an exception; the text is that of the exception."""


def isolated(function: Function, *arguments: Any, seconds: float = SECONDS) -> Any:
    """The result of a function that runs in a child process.

    Args:
        function: one of a module, found by its name.
        arguments: its arguments; they are pickled where the child is not forked.
        seconds: of computing, at most; by the clock `PATIENCE` times as many.

    Raises:
        Failure: the function raised.
        Crash: the process ended, or took too long.
    """
    alone = threading.active_count() == 1
    if sys.platform == "linux" and alone:
        answer = _forked(function, arguments, MEMORY, seconds)
    else:
        answer = _spawned(function, arguments, MEMORY, seconds)
    good, value = pickle.loads(answer)
    if not good:
        raise Failure(value)
    return value


def _forked(function: Function, arguments: tuple[Any, ...], memory: int, seconds: float) -> bytes:
    read, write = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of any thread, those that a library of arithmetic waits with as well.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        _child(function, arguments, memory, seconds, write)
    os.close(write)
    try:
        answer = _read_all(read, PATIENCE * seconds)
    except BaseException:
        # It took too long, or Ctrl-C.
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(read)
        status = os.waitpid(pid, 0)[1]
    return _checked(answer, os.waitstatus_to_exitcode(status), seconds)


def _child(
    function: Function, arguments: tuple[Any, ...], memory: int, seconds: float, write: int
) -> None:
    """Run the function, answer and exit; nothing of the parent's is flushed or cleaned up."""
    try:
        faulthandler.disable()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        with os.fdopen(write, "wb") as pipe:
            pipe.write(_answer(function, arguments, memory, seconds))
        os._exit(0)
    finally:
        os._exit(_FAILED)


def _spawned(function: Function, arguments: tuple[Any, ...], memory: int, seconds: float) -> bytes:
    named = (function.__module__, function.__qualname__, arguments, memory, seconds)
    request = pickle.dumps(sys.path) + pickle.dumps(named)
    command = [sys.executable, "-P", "-c", _CHILD]
    limit = PATIENCE * seconds
    try:
        done = subprocess.run(command, input=request, capture_output=True, timeout=limit)
    except subprocess.TimeoutExpired as error:
        raise Crash(f"it took more than {limit:.0f} seconds") from error
    return _checked(done.stdout, done.returncode, seconds)


def answer() -> None:
    """The main function of an interpreter that was started for one function."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    module, name, arguments, memory, seconds = pickle.load(sys.stdin.buffer)
    function = getattr(importlib.import_module(module), name)
    out.write(_answer(function, arguments, memory, seconds))
    out.close()
    os._exit(0)


def _answer(function: Function, arguments: tuple[Any, ...], memory: int, seconds: float) -> bytes:
    try:
        _limit(memory, seconds)
        return pickle.dumps((True, function(*arguments)))
    except MemoryError:
        return pickle.dumps((False, "it takes too much memory"))
    except Exception as error:
        return pickle.dumps((False, str(error) or type(error).__name__))


def _limit(memory: int, seconds: float) -> None:
    """Limit this process' memory and time, and write no core dump where it crashes."""
    if sys.platform == "win32":
        return
    import resource

    taken = psutil.Process().memory_info().vms
    for kind, bound in (
        (resource.RLIMIT_AS, taken + memory),
        (resource.RLIMIT_CPU, math.ceil(seconds)),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        limit = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        # macOS refuses a bound on the memory that a process may name.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (limit, hard))


def _read_all(pipe: int, seconds: float) -> bytes:
    parts: list[bytes] = []
    end = time.monotonic() + seconds
    while True:
        ready, _, _ = select.select([pipe], [], [], max(end - time.monotonic(), 0))
        if not ready:
            raise Crash(f"it took more than {seconds:.0f} seconds")
        part = os.read(pipe, 1 << 20)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _checked(answer: bytes, code: int, seconds: float) -> bytes:
    if answer and not code:
        return answer
    name = signal.Signals(-code).name if code < 0 else f"code {code}"
    if name == "SIGXCPU":
        raise Crash(f"it computed for more than {seconds:.0f} seconds")
    raise Crash(f"the process ended with {name}")
