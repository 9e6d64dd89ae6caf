"""Write the model file: whole or not at all, never over what the user had unasked."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxq.errors import OutputError
from onnxq.session import PROTOBUF_LIMIT


def check_output(path: Path, model_path: Path, force: bool) -> None:
    """Find out before the long work whether the output can be written.

    Raises:
        OutputError: the path is the model itself, exists, or its folder can't be written.
    """
    if path.exists() and model_path.exists() and path.samefile(model_path):
        raise OutputError(f"the output '{path}' is the model itself; name another file with -o")
    if path.is_dir():
        raise OutputError(f"the output '{path}' is a folder; name a file with -o")
    check_new(path, force, "output", "-o")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"the folder '{folder}' of the output does not exist; make it first")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise _cannot_write(path, error) from error


def check_new(path: Path, force: bool, what: str, option: str) -> None:
    """Refuse to overwrite a file unasked.

    Raises:
        OutputError: the path exists and `force` is False.
    """
    if path.exists() and not force:
        raise OutputError(f"the {what} '{path}' exists; name another with {option}, or add --force")


def add_metadata(model: ir.Model, entries: Mapping[str, str]) -> None:
    """Put the entries among the model's own, in place, in sorted order."""
    merged = {**model.metadata_props, **entries}
    model.metadata_props.clear()
    model.metadata_props.update(sorted(merged.items()))


def model_bytes(model: ir.Model) -> int:
    """The size of the model's file, external data included, in bytes."""
    weights = _weight_bytes(model)
    if weights < PROTOBUF_LIMIT:
        return int(ir.to_proto(model).ByteSize())
    return weights


def save_model(model: ir.Model, path: Path) -> int:
    """Write the model, beside its final place first, then rename; the size in bytes.

    Above 2 GB the weights go to `<name>.data` beside it.

    Raises:
        OutputError: there is no space, or the file can't be written; nothing is left.
    """
    folder = path.absolute().parent
    try:
        staging = Path(tempfile.mkdtemp(prefix=".onnxq-", dir=folder))
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        _write(model, staging, path.name)
        written = sorted(staging.iterdir(), key=lambda p: p.name == path.name)
        size = sum(file.stat().st_size for file in written)
        for file in written:
            file.replace(folder / file.name)
        return size
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write(model: ir.Model, folder: Path, name: str) -> None:
    if _weight_bytes(model) < PROTOBUF_LIMIT:
        proto = ir.to_proto(model)
        onnx.checker.check_model(proto)
        (folder / name).write_bytes(proto.SerializeToString(deterministic=True))
        return
    ir.save(model, folder / name, external_data=f"{name}.data")
    onnx.checker.check_model(str(folder / name))


def _weight_bytes(model: ir.Model) -> int:
    values = model.graph.initializers.values()
    return sum(v.const_value.nbytes for v in values if v.const_value is not None)


def _cannot_write(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(f"can't write '{path}' ({reason}); free some space or name another file")
