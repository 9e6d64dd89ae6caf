"""Reading a model's file: the only way from a path to a model that ONNX Runtime opens.

Every tensor is checked before anything but protobuf sees the file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from google.protobuf.message import DecodeError

from onnxq.errors import ModelError, reason_of
from onnxq.load.external import check_attributes, external_files, external_place, load_external
from onnxq.load.structure import sort_nodes
from onnxq.load.tensors import (
    all_tensors,
    data_problem,
    inner_tensors,
    is_external,
    tensor_bytes,
)
from onnxq.numerics.distances import Outputs
from onnxq.runtime.isolation import SECONDS, Crash, isolated
from onnxq.runtime.session import Feeds, as_session_takes, not_opened, open_session, serialized
from onnxq.runtime.weight_files import LARGE, is_large, weight_bytes

_NEWEST_IR_VERSION = 64
_FIRST_BYTE = b"\x08"
"""The tag of the field ir_version, with which every serialised ModelProto starts."""


def read_proto(path: Path) -> onnx.ModelProto:
    """The message in a model's file, without its external data.

    Raises:
        ModelError: not a file, not ONNX, truncated, a tensor whose data don't match its shape, or
            external data that are missing or outside the model's folder.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ModelError(
            f'The name of the model "{path}" is not UTF-8, and ONNX Runtime opens no such file; '
            "rename it, and the folders that are part of the path."
        ) from error
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ModelError(
            f'The model "{path}" can\'t be read ({reason}); give the path of an ONNX file.'
        ) from error
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise _unreadable(data, path) from error
    if not 0 < proto.ir_version <= _NEWEST_IR_VERSION:
        raise _unreadable(data, path)
    for tensor in all_tensors(proto):
        _check_tensor(tensor, path)
    check_attributes(proto, path.name)
    return proto


def read_graph(path: Path) -> ir.Model:
    """The model in a file, its nodes sorted; external data of initializers stay on disk.

    Raises:
        ModelError: as `read_proto`, or it holds something that can't be represented.
    """
    proto = read_proto(path)
    _load(inner_tensors(proto), path)
    model = deserialize(proto, path.name)
    sort_nodes(model, path.name)
    ir.external_data.set_base_dir(model.graph, path.absolute().parent)
    return model


def model_files(path: Path) -> list[Path]:
    """A model's file and its external data files.

    Raises:
        ModelError: as `read_proto`.
    """
    return [path, *external_files(read_proto(path), path.absolute().parent)]


def file_bytes(path: Path) -> int:
    """Bytes of a model's file and its external data files."""
    return sum(file.stat().st_size for file in model_files(path))


def load_external_data(proto: onnx.ModelProto, path: Path) -> None:
    """Read external data into a checked message; where initializers are large, they stay outside.

    Args:
        proto: of the file; it is changed in place.
        path: the file.

    Raises:
        ModelError: they can't be read.
    """
    outside = [tensor for tensor in proto.graph.initializer if is_external(tensor)]
    large = sum(tensor_bytes(tensor) for tensor in outside) >= LARGE
    _load(inner_tensors(proto) if large else all_tensors(proto), path)


def deserialize(proto: onnx.ModelProto, name: str) -> ir.Model:
    """The model in a message.

    Raises:
        ModelError: it holds something that can't be represented.
    """
    try:
        return ir.from_proto(proto)
    # What onnx-ir raises for a damaged message is not always an error of its own.
    except Exception as error:
        raise unrepresentable(name, error) from error


def unrepresentable(name: str, error: BaseException) -> ModelError:
    """The error message for a model that onnx-ir can't read or write."""
    return ModelError(
        f'The model "{name}" holds something that can\'t be represented '
        f"({reason_of(_first_cause(error))}); check it with onnx.checker."
    )


def _load(tensors: Iterable[onnx.TensorProto], path: Path) -> None:
    for tensor in tensors:
        if is_external(tensor):
            try:
                load_external(tensor, path.absolute().parent)
            except (OSError, ValueError) as error:
                raise _external_error(path, error) from error


def _check_tensor(tensor: onnx.TensorProto, path: Path) -> None:
    if is_external(tensor):
        try:
            external_place(tensor, path.absolute().parent)
        except (OSError, ValueError) as error:
            raise _external_error(path, error, f"the tensor '{tensor.name}': ") from error
    elif (problem := data_problem(tensor)) is not None:
        raise ModelError(
            f'The tensor "{tensor.name}" of "{path.name}" is damaged ({problem}); copy or export '
            "the model again."
        )


def _external_error(path: Path, error: Exception, which: str = "") -> ModelError:
    return ModelError(
        f'The external data of "{path.name}" can\'t be read ({which}{reason_of(error)}); '
        "put the data files beside the model under their original names."
    )


def _first_cause(error: BaseException) -> BaseException:
    """The innermost error of a chain, which names the thing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _unreadable(data: bytes, path: Path) -> ModelError:
    if data[:1] == _FIRST_BYTE and 0 < int.from_bytes(data[1:2], "big") <= _NEWEST_IR_VERSION:
        return ModelError(
            f'The model "{path.name}" is truncated or damaged (its {len(data)} bytes start as an '
            "ONNX model but do not end as one); copy or download it again."
        )
    return ModelError(
        f'The file "{path.name}" is not an ONNX model (its {len(data)} bytes are not a '
        "serialised ModelProto); give a file that was exported to ONNX."
    )


logger = logging.getLogger(__name__)

MOST = 2**30
"""Bytes of a model above which it is opened in this process: twice would take too long."""

RUN_SECONDS = 5.0
"""After which a model's run is stopped: it has not crashed."""

BYTES_PER_SECOND = 2**22
"""What a model may take to open, at the slowest."""

_OPENED: set[bytes] = set()
"""Digests of what has been opened in a child process."""


def check_opens(model: ir.Model | Path, name: str) -> None:
    """Raises ModelError where ONNX Runtime can't open a model, or the file of one.

    Args:
        model: the model to try.
        name: its name in the error message.
    """
    large = (file_bytes(model) if isinstance(model, Path) else weight_bytes(model)) > MOST
    try:
        if large:
            open_session(model, optimise=False)
        else:
            _try(model)
    except Exception as error:
        # ONNX Runtime's exceptions share no base class but Exception.
        how = "crashes on" if isinstance(error, Crash) else "can't open"
        raise not_opened(f'the model "{name}"', error, how) from error


def _try(model: ir.Model | Path) -> None:
    """Open a model in a child process; each content is tried once."""
    data: bytes | Path = model if isinstance(model, Path) else serialized(model)
    content = os.fsencode(data) + data.read_bytes() if isinstance(data, Path) else data
    digest = hashlib.sha256(content).digest()
    if digest not in _OPENED:
        large = not isinstance(model, Path) and is_large(model)
        seconds = SECONDS + RUN_SECONDS + len(content) / BYTES_PER_SECOND
        isolated(_open, data, large, seconds=seconds)
        _OPENED.add(digest)


def _open(model: bytes | Path, large: bool) -> None:
    """Open a model without optimization, then with it, and run it.

    Only the first has to succeed. The optimizer refuses some sound models whose nodes have no
    names, which they get later, and not every model can compute with zeros.
    """
    session = open_session(model, optimise=False, prepack=not large)
    try:
        session = open_session(model, optimise=True, prepack=not large)
        _run(session)
    except Exception as error:
        # ONNX Runtime's exceptions share no base class but Exception.
        logger.debug("the optimiser refuses the model, or it does not run: %s", error)


def _run(session: ort.InferenceSession) -> None:
    """Run a model once, if the sizes of its inputs are known; a long run is stopped."""
    shapes = [each.shape for each in session.get_inputs()]
    if any(not isinstance(dim, int) for shape in shapes for dim in shape[1:]):
        # Some kernels crash on sizes that no sample has.
        return
    options = ort.RunOptions()
    options.log_severity_level = 4
    timer = threading.Timer(RUN_SECONDS, setattr, (options, "terminate", True))
    timer.start()
    session.run(None, {each.name: _zeros(each) for each in session.get_inputs()}, options)


def _zeros(taken: ort.NodeArg) -> np.ndarray:
    dtype = ir.DataType[taken.type.removeprefix("tensor(").removesuffix(")").upper()].numpy()
    return np.zeros([dim if isinstance(dim, int) else 1 for dim in taken.shape], dtype)


def run_model(model: ir.Model | Path, feeds: Sequence[Feeds], *, optimise: bool) -> list[Outputs]:
    """The outputs of the model for each of the feeds, in the order of the graph."""
    session = open_session(model, optimise=optimise)
    return [list(session.run(None, as_session_takes(session, feed))) for feed in feeds]
