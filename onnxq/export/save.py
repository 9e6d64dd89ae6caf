"""Writing the model file.

A file is written whole or not at all, by one run at a time, and replaces an existing one only if
the user said so.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxq.errors import ModelError, OutputError, reason_of
from onnxq.load.read import model_files
from onnxq.runtime.session import PROTOBUF_LIMIT
from onnxq.runtime.temporary import real_path, temporary_folder


def lock_path(path: Path) -> Path:
    """The file beside a file that locks it; it holds the process id of the writer."""
    path = real_path(path)
    return path.with_name(f".{path.name}.onnxq-lock")


@contextmanager
def locked(path: Path | None) -> Iterator[None]:
    """Lock a file against other runs while this one goes on.

    The system releases the lock when the process ends in any way. The lock file of a killed process
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


LONGEST_NAME = 200
"""Bytes of a file's name: most systems take 255, and a checkpoint's name is a little longer."""


def check_files(
    model_path: Path, force: bool, *, output: Path | None, generator: Path | None
) -> None:
    """Check before the long work whether the files of a run can be written.

    Args:
        model_path: the model, which is never overwritten.
        force: whether another file may be overwritten.
        output: the file of the result; None where none is written.
        generator: the file of the generator; None where none is written.

    Raises:
        OutputError: as `check_output`.
    """
    if output is not None:
        check_output(output, model_path, force)
    if generator is not None:
        check_file(generator, model_path, force, "generator", "--save-generator")


def check_output(path: Path, model_path: Path, force: bool) -> None:
    """Check before the long work whether the output can be written.

    Raises:
        OutputError: the path is the model itself or a part of it, exists, or its folder can't be
            written.
    """
    check_file(path, model_path, force, "output", "-o")


def check_file(path: Path, model_path: Path, force: bool, what: str, option: str) -> None:
    """`check_output` for any file that a run writes.

    Args:
        path: the file to write.
        model_path: the model, which is never overwritten, nor its external data.
        force: whether another file may be overwritten.
        what: the file's content, for the error message.
        option: the option that names the file, for the error message.

    Raises:
        OutputError: as `check_output`.
    """
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise OutputError(
            f"the name of the {what} '{path.name[:40]}...' is longer than {LONGEST_NAME} bytes; "
            f"give a shorter one with {option}"
        )
    for part, described in _model_files(model_path):
        if path.exists() and part.exists() and path.samefile(part):
            raise OutputError(f"the {what} '{path}' is {described}; name another with {option}")
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise OutputError(f"the {what} '{path}' is {kind}; name a file with {option}")
    check_new(path, force, what, option)
    folder = real_path(path).absolute().parent
    if not folder.is_dir():
        raise OutputError(f"the folder '{folder}' of the {what} does not exist; make it first")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise _cannot_write(path, error) from error


def _model_files(model_path: Path) -> Iterator[tuple[Path, str]]:
    """The files of a model, with the role of each."""
    yield model_path, "the model itself"
    try:
        files = model_files(model_path)
    except ModelError:
        # Loading the model says what is wrong with it.
        return
    for file in files[1:]:
        yield file, "the model's external data"


def check_new(path: Path, force: bool, what: str, option: str) -> None:
    """Refuse to overwrite a file without `force`.

    Raises:
        OutputError: the path exists and `force` is False.
    """
    if path.exists() and not force:
        raise OutputError(f"the {what} '{path}' exists; name another with {option}, or add --force")


def model_bytes(model: ir.Model) -> int:
    """The size of the model's file, external data included, in bytes."""
    weights = _weight_bytes(model)
    if weights < PROTOBUF_LIMIT:
        return int(ir.to_proto(model).ByteSize())
    return weights


def save_model(model: ir.Model, path: Path) -> int:
    """Write the model beside its final place, then rename it; returns its bytes.

    A link is followed to its target. Above 2 GB the weights go to `<name>.data` beside the file.

    Raises:
        OutputError: the disk is full, or the file can't be written; nothing is left behind.
    """
    path = real_path(path)
    folder = path.absolute().parent
    try:
        with temporary_folder(folder) as staging:
            _write(model, staging, path.name)
            written = sorted(staging.iterdir(), key=lambda p: p.name == path.name)
            size = sum(file.stat().st_size for file in written)
            for file in written:
                file.replace(folder / file.name)
            return size
    except OSError as error:
        raise _cannot_write(path, error) from error


def try_to_save(model: ir.Model | None, path: Path | None) -> OutputError | None:
    """Write a model where both are given; returns the error, so that the work can continue."""
    if model is None or path is None:
        return None
    try:
        save_model(model, path)
    except OutputError as error:
        return error
    return None


def _write(model: ir.Model, folder: Path, name: str) -> None:
    if _weight_bytes(model) < PROTOBUF_LIMIT:
        proto = ir.to_proto(model)
        _check(proto)
        (folder / name).write_bytes(proto.SerializeToString(deterministic=True))
        return
    ir.save(model, folder / name, external_data=f"{name}.data")
    _check(str(folder / name))


def _check(model: onnx.ModelProto | str) -> None:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ModelError(
            f"The model can't be written as valid ONNX ({reason_of(error)}); check the original "
            "with onnx.checker, or export it again."
        ) from error


def _weight_bytes(model: ir.Model) -> int:
    values = model.graph.initializers.values()
    return sum(v.const_value.nbytes for v in values if v.const_value is not None)


def _cannot_write(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(f"can't write '{path}' ({reason}); free some space or name another file")
