"""One case in a child of this process, with limits of time and memory and folders of its own."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import pkgutil
import resource
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import onnxq

SECONDS = 20
MEMORY = 2 << 30
"""Bytes of address space on top of what the parent uses."""

CRASHED = 70
"""How a child ends that an exception left."""


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code; negative the signal that ended it; None where it took too long.
        out: its standard output.
        err: its standard error.
    """

    code: int | None
    out: str
    err: str


def import_everything() -> None:
    """Import all of onnxq, so that children need not: commands import what they run."""
    for module in pkgutil.walk_packages(onnxq.__path__, "onnxq."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def run_forked(work: Callable[[], object], folder: Path) -> Ended:
    """Run something in a forked child whose current folder is the given one.

    Args:
        work: may end by SystemExit, as commands do.
        folder: an empty one; `out`, `err` and `temporary` beside it are the child's.
    """
    out, err, temporary = (folder.parent / name for name in ("out", "err", "temporary"))
    temporary.mkdir(exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(work, folder, out, err, temporary)
    code = _wait(pid)
    texts = (path.read_text(encoding="utf-8", errors="backslashreplace") for path in (out, err))
    return Ended(code, *texts)


def run_command(arguments: list[str], folder: Path) -> Ended:
    """Run the command as a user does, in a process that imports everything anew."""
    temporary = folder.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "onnxq", *arguments]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True, encoding="utf-8", errors="backslashreplace",
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=3 * SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return Ended(None, "", "")
    return Ended(process.returncode, out, err)


def _child(work: Callable[[], object], folder: Path, out: Path, err: Path, temporary: Path) -> None:
    code: object = CRASHED
    try:
        os.setsid()
        os.chdir(folder)
        sys.stdout, sys.stderr = _redirected(out, 1), _redirected(err, 2)
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        _limit()
        work()
        code = 0
    except SystemExit as end:
        code = 0 if end.code is None else end.code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else CRASHED)


def _redirected(path: Path, number: int) -> TextIO:
    """A stream to a file, which is what C libraries write to as well."""
    file = path.open("w", encoding="utf-8", errors="backslashreplace")
    os.dup2(file.fileno(), number)
    return file


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _wait(pid: int) -> int | None:
    """The exit code of a child, or None where it had to be killed."""
    handle = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        ended = bool(poll.poll(1000 * SECONDS))
        if not ended:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # Whatever it started.
            os.killpg(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(status) if ended else None
    finally:
        os.close(handle)
