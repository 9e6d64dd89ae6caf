"""Bringing a model into the range of the training engine: opset 13 to 21, IR at most 10."""

from __future__ import annotations

import onnx
from onnx import version_converter

from onnxq.errors import ModelError
from onnxq.load.limits import all_nodes

MIN_READABLE_OPSET = 7
MIN_OPSET = 13
MAX_OPSET = 21
_INT4_OPSET = 21
"""The first with tensors of type INT4."""
_HALF_PIXEL_OPSET = 11
"""Before it, Upsample and Resize had but one way of sampling: x / scale, rounded down."""

MIN_IR_VERSION = 7
MAX_IR_VERSION = 10
_DEFAULT_DOMAINS = ("", "ai.onnx")


def default_opset(model: onnx.ModelProto) -> int | None:
    """The version of ONNX's own operator set that the model uses; None if it uses none."""
    versions = [o.version for o in model.opset_import if o.domain in _DEFAULT_DOMAINS]
    return max(versions) if versions else None


def least_opset(target: str) -> int:
    """The oldest opset that a model may have for a target of the export."""
    return _INT4_OPSET if target == "int4" else MIN_OPSET


def convert_version(model: onnx.ModelProto, name: str, least: int = MIN_OPSET) -> onnx.ModelProto:
    """The same model at an opset between 13 and 21.

    Args:
        model: the model; it is not changed.
        name: the file's name, for the error.
        least: the oldest opset that will do, 13 to 21.

    Raises:
        ModelError: the opset is older than 7 or not known yet, or there is no conversion for
            an operator.
    """
    opset = default_opset(model)
    if opset is not None and opset < MIN_READABLE_OPSET:
        raise ModelError(
            f'The model "{name}" uses opset {opset}, where {MIN_READABLE_OPSET} or newer is '
            f"expected; export it again with opset {MIN_OPSET} or newer."
        )
    if opset is not None and opset > onnx.defs.onnx_opset_version():
        raise ModelError(
            f'The model "{name}" uses opset {opset}, which is newer than any that is known '
            f"here ({onnx.defs.onnx_opset_version()}); export it again with an opset between "
            f"{MIN_OPSET} and {MAX_OPSET}."
        )
    if opset is None or least <= opset <= MAX_OPSET:
        return model
    return _convert_opset(model, opset, min(max(opset, least), MAX_OPSET), name)


def convert_ir_version(version: int, opset: int = MIN_OPSET) -> int:
    """The nearest IR version that every session here can read, 7 to 10; 10 at opset 21."""
    least = MAX_IR_VERSION if opset == MAX_OPSET else MIN_IR_VERSION
    return min(max(version, least), MAX_IR_VERSION)


def _convert_opset(model: onnx.ModelProto, opset: int, target: int, name: str) -> onnx.ModelProto:
    try:
        converted = version_converter.convert_version(model, target)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else "unknown"
        raise ModelError(
            f'The model "{name}" uses opset {opset} and can\'t be converted to opset {target} '
            f"({reason}); export it again with an opset between {MIN_OPSET} and {MAX_OPSET}."
        ) from error
    if opset < _HALF_PIXEL_OPSET:
        _sample_as_before(converted)
    return converted


def _sample_as_before(model: onnx.ModelProto) -> None:
    """Make Resize sample as it did before opset 11, which the converter forgets to say."""
    for node in all_nodes(model):
        if node.op_type == "Resize" and node.domain in _DEFAULT_DOMAINS:
            kept = [a for a in node.attribute if a.name == "mode"]
            del node.attribute[:]
            node.attribute.extend(kept)
            node.attribute.append(
                onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric")
            )
            node.attribute.append(onnx.helper.make_attribute("nearest_mode", "floor"))
