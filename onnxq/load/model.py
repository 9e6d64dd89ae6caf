"""Reading a model file into onnx-ir, inside the range of the training engine."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common

from onnxq.errors import ModelError, reason_of
from onnxq.load.inputs import input_specs, random_feeds
from onnxq.load.interface import note_interface
from onnxq.load.large import (
    check_external_data,
    external_bytes,
    put_in_weights,
    take_out_weights,
)
from onnxq.load.limits import DEFAULT_DOMAINS, check_operators, check_types
from onnxq.load.outputs import run_model
from onnxq.load.version import (
    MAX_IR_VERSION,
    MAX_OPSET,
    MIN_OPSET,
    convert_ir_version,
    convert_version,
    default_opset,
)
from onnxq.numerics.equality import find_difference
from onnxq.session import open_session
from onnxq.weight_files import LARGE

logger = logging.getLogger(__name__)

_NEWEST_IR_VERSION = 64
_FIRST_BYTE = b"\x08"
"""The tag of the field ir_version, with which every serialised ModelProto starts."""


def load_model(path: str | os.PathLike[str], least_opset: int = MIN_OPSET) -> ir.Model:
    """The model of a file, at opset 13 to 21 and IR 7 to 10, with its functions inlined.

    Initializers are no longer graph inputs afterwards. Nothing else is changed; what the file takes
    and gives is written down (`interface_of`).

    Args:
        path: an `.onnx` file; external data is read from beside it.
        least_opset: the oldest opset that the model may have afterwards.

    Raises:
        ModelError: not a file, not ONNX, truncated, external data missing, an opset out of
            range, custom operators, already quantized, or refused by ONNX Runtime.
    """
    path = Path(path)
    proto = _read_proto(path)
    _check_complete(proto, path)
    check_operators(proto, path.name)
    check_types(proto, path.name)
    _load_external_data(proto, path)
    proto, weights = take_out_weights(proto)
    model = _deserialize(convert_version(proto, path.name, least_opset), path.name)
    put_in_weights(model, weights, path.absolute().parent)
    model.ir_version = convert_ir_version(proto.ir_version, least_opset)
    if model.functions:
        common.InlinePass()(model)
        common.RemoveUnusedOpsetsPass()(model)
    common.RemoveInitializersFromInputsPass()(model)
    note_interface(model)
    check_opens(model, path.name)
    opset = default_opset(proto)
    if opset is not None and opset < model.opset_imports.get("", opset):
        _check_conversion(proto, model, path)
    return model


def runnable(path: Path, model: ir.Model) -> Path | ir.Model:
    """What a session opens for a file: the file, unless its versions are newer than ONNX Runtime.

    Args:
        path: the file.
        model: the model in it, as it is.

    Returns:
        The file's path, or the model converted to versions that ONNX Runtime reads.

    Raises:
        ModelError: the model is too new and can't be converted.
    """
    opset = max(model.opset_imports.get(domain, 0) for domain in DEFAULT_DOMAINS)
    if model.ir_version <= MAX_IR_VERSION and opset <= MAX_OPSET:
        return path
    return load_model(path)


def _read_proto(path: Path) -> onnx.ModelProto:
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
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
    return proto


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


def _check_complete(proto: onnx.ModelProto, path: Path) -> None:
    if not proto.graph.node or not proto.graph.output:
        raise ModelError(
            f'The model "{path.name}" has {len(proto.graph.node)} nodes and '
            f"{len(proto.graph.output)} outputs, where at least one of each is expected; "
            "it may be truncated, so copy or export it again."
        )
    if not proto.opset_import:
        raise ModelError(
            f'The model "{path.name}" does not say which opset it uses, where an opset_import '
            "is expected; it may be truncated, so copy or export it again."
        )


def _load_external_data(proto: onnx.ModelProto, path: Path) -> None:
    try:
        if external_bytes(proto) >= LARGE:
            check_external_data(proto, path.parent)
        else:
            onnx.load_external_data_for_model(proto, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        reason = reason_of(error)
        raise ModelError(
            f'The external data of "{path.name}" can\'t be read ({reason}); '
            "put the data files beside the model under their original names."
        ) from error


def first_cause(error: BaseException) -> BaseException:
    """The error at the bottom of a chain of causes: the one that names the thing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _deserialize(proto: onnx.ModelProto, name: str) -> ir.Model:
    try:
        return ir.from_proto(proto)
    except ir.serde.SerdeError as error:
        cause = first_cause(error)
        raise ModelError(
            f'The model "{name}" holds something that can\'t be represented '
            f"({reason_of(cause)}); check it with onnx.checker."
        ) from error


def check_opens(model: ir.Model | Path, name: str) -> None:
    """Raises ModelError where ONNX Runtime can't open a model, or the file of one.

    Args:
        model: what is tried.
        name: how the error calls it.
    """
    try:
        open_session(model, optimise=False)
    except Exception as error:
        # ONNX Runtime's exceptions share no base class but Exception.
        reason = reason_of(error)
        raise ModelError(
            f'ONNX Runtime can\'t open the model "{name}" ({reason}); '
            "check it with onnx.checker, or export it again."
        ) from error


def _check_conversion(proto: onnx.ModelProto, model: ir.Model, path: Path) -> None:
    """Compare the converted model with the one of the file, on random inputs.

    Raises:
        ModelError: their outputs differ.
    """
    feeds = [random_feeds(input_specs(model), batch=1)]
    try:
        expected = run_model(path, feeds, optimise=False)
    except Exception as error:
        # ONNX Runtime's exceptions share no base class but Exception.
        logger.debug("the conversion of '%s' is not checked: %s", path.name, error)
        return
    found = run_model(model, feeds, optimise=False)
    names = [str(value.name) for value in model.graph.outputs]
    if (reason := find_difference(names, expected, found)) is not None:
        raise ModelError(
            f'The model "{path.name}" uses opset {default_opset(proto)} and converting it changes '
            f"what it computes ({reason}); export it again with opset {MIN_OPSET} or newer."
        )
