"""Temporary files and folders; those of ended processes are removed.

The names hold the id of their process. A process that is killed leaves its files behind. The first
temporary file that another process creates in the same folder removes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_NAME = "onnxq-{machine}-{process}-"
_LEFT = re.compile(r"\.?onnxq-(?P<machine>[0-9a-f]{8})-(?P<process>[0-9]+)-")

_SWEPT: set[tuple[int, Path]] = set()
"""Folders that a process has swept."""


@contextmanager
def temporary_folder(beside: Path | None = None) -> Iterator[Path]:
    """A folder that is removed at the end.

    Args:
        beside: the folder to create it in, hidden; None means the system's.
    """
    folder = Path(tempfile.mkdtemp(prefix=_prefix(beside), dir=_swept(beside)))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def temporary_file(suffix: str) -> Path:
    """A new, empty file in the system's folder; the caller removes it."""
    handle, name = tempfile.mkstemp(prefix=_prefix(None), suffix=suffix, dir=_swept(None))
    os.close(handle)
    return Path(name)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: it can't be written; an older file is unchanged.
    """
    path = real_path(path)
    with temporary_folder(path.absolute().parent) as folder:
        fresh = folder / path.name
        fresh.write_bytes(data)
        fresh.replace(path)


def real_path(path: Path) -> Path:
    """The file of a path; of a link, its target."""
    return path.resolve() if path.is_symlink() else path


def _prefix(beside: Path | None) -> str:
    # Folders may be shared between machines, whose processes are not known here.
    machine = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    hidden = "" if beside is None else "."
    return hidden + _NAME.format(machine=machine, process=os.getpid())


def _swept(beside: Path | None) -> Path:
    """The folder for temporary files, after removing those of ended processes."""
    folder = Path(tempfile.gettempdir()) if beside is None else beside
    if (os.getpid(), folder) not in _SWEPT:
        _SWEPT.add((os.getpid(), folder))
        with contextlib.suppress(OSError):
            # What can't be listed can't be swept; making a file there says what is wrong.
            for path in list(folder.iterdir()):
                _sweep(path)
    return folder


def _sweep(path: Path) -> None:
    """Remove the files that ended processes of this machine left, as far as permitted."""
    found = _LEFT.match(path.name)
    here = _LEFT.match(_prefix(None))
    assert here is not None
    if found is None or found["machine"] != here["machine"] or path.is_symlink():
        return
    if psutil.pid_exists(int(found["process"])):
        return
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
