"""One run at a time writes a file: the second is told so."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnxq.errors import OutputError
from onnxq.temporary import real_path


def lock_path(path: Path) -> Path:
    """The file that says who writes a file, beside it; it holds the number of the process."""
    path = real_path(path)
    return path.with_name(f".{path.name}.onnxq-lock")


@contextmanager
def locked(path: Path | None) -> Iterator[None]:
    """Keep other runs from writing the same file for as long as this one goes on.

    The system lets go of the lock when the process ends in whatever way; what a killed one leaves
    is not locked, and is taken over.

    Args:
        path: the file to be written; None where there is none.

    Raises:
        OutputError: another run is writing it.
    """
    if path is None or sys.platform == "win32":
        yield
        return
    handle = _acquire(path)
    try:
        yield
    finally:
        if handle is not None:
            lock_path(path).unlink(missing_ok=True)
            os.close(handle)


def _acquire(path: Path) -> int | None:
    """The open lock; None where the file system has none."""
    assert sys.platform != "win32"
    import fcntl

    lock = lock_path(path)
    while True:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(
                f"can't write '{lock}' ({reason}); free some space or name another file"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(handle, 20).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise OutputError(
                f"another run (process {owner}) is writing '{path}'; wait for it, or name another "
                "output with -o"
            ) from error
        except OSError:
            # A network's file system without locks.
            os.close(handle)
            lock.unlink(missing_ok=True)
            return None
        if _is_there(lock, handle):
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()}\n".encode())
            return handle
        # The run before removed it between the two calls.
        os.close(handle)


def _is_there(lock: Path, handle: int) -> bool:
    try:
        return os.path.samestat(lock.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
