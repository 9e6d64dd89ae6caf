"""Opsets and domains, converted to those that ONNX Runtime reads."""

from __future__ import annotations

import onnx
from google.protobuf.message import EncodeError
from onnx import version_converter

from onnxq.errors import ModelError, reason_of
from onnxq.graph.facts import DEFAULT_DOMAINS
from onnxq.load.structure import all_nodes, first_versions, nested_protos
from onnxq.runtime.isolation import Crash, Failure, isolated
from onnxq.runtime.session import SURE_OPSET, newest_ir_version, newest_opset

MIN_READABLE_OPSET = 7
MIN_OPSET = 13
_INT4_OPSET, _INT4_IR_VERSION = 21, 10
"""The first with tensors of type INT4."""
_HALF_PIXEL_OPSET = 11
"""Before it, Upsample and Resize had but one way of sampling: x / scale, rounded down."""

MIN_IR_VERSION = 7
SECONDS = 60.0
"""That a conversion may take."""

_ASIDE = "onnxq.aside"
"""The domain of nodes that the converter must not look at."""


def max_opset() -> int:
    """The newest opset that ONNX knows and in which ONNX Runtime runs quantized models."""
    return min(newest_opset(quantized=True), int(onnx.defs.onnx_opset_version()))


def default_opset(model: onnx.ModelProto) -> int | None:
    """The model's version of ONNX's own operator set; None if it uses none."""
    versions = [o.version for o in model.opset_import if o.domain in DEFAULT_DOMAINS]
    return max(versions) if versions else None


def least_opset(target: str) -> int:
    """The oldest opset that a model may have for an export target."""
    return _INT4_OPSET if target == "int4" else MIN_OPSET


def convert_version(model: onnx.ModelProto, name: str, least: int = MIN_OPSET) -> onnx.ModelProto:
    """The same model at an opset that ONNX Runtime reads and that has all of its operators.

    It is the model's own where that is 13 or newer, and not too new. ONNX Runtime accepts
    LayerNormalization at opsets before 17, which introduced it, and its optimizer writes such
    models.

    Args:
        model: the model; it is not changed.
        name: the file's name, for the error message.
        least: the oldest opset to return, 13 to 21.

    Raises:
        ModelError: the opset is older than 7 or not known yet, or an operator has no conversion.
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
            f"{MIN_OPSET} and {max_opset()}."
        )
    if opset is None:
        return model
    most = max_opset()
    least = min(max([least, *(first for _, first in _ahead(model, opset))]), most)
    if least <= opset <= most:
        return model
    return _convert_opset(model, opset, min(max(opset, least), most), name)


def convert_ir_version(version: int, opset: int = MIN_OPSET) -> int:
    """The nearest IR version that ONNX Runtime reads, from 7 on; from 10 on with INT4 tensors."""
    least = _INT4_IR_VERSION if opset >= _INT4_OPSET else MIN_IR_VERSION
    return min(max(version, least), newest_ir_version())


def _ahead(model: onnx.ModelProto, opset: int) -> list[tuple[onnx.NodeProto, int]]:
    """Nodes whose operator is newer than the model's opset, and the opset of each."""
    own = (node for node in all_nodes(model) if node.domain in DEFAULT_DOMAINS)
    found = ((node, first_versions().get(node.op_type, 0)) for node in own)
    return [(node, first) for node, first in found if first > opset]


def _put_aside(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model with operators newer than its opset moved to a domain that the converter ignores.

    It is a copy, or the model itself where there are none.
    """
    if not _ahead(model, opset):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node, _ in _ahead(copy, opset):
        node.domain = _ASIDE
    copy.opset_import.append(onnx.helper.make_opsetid(_ASIDE, 1))
    return copy


def _put_back(model: onnx.ModelProto) -> None:
    for node in all_nodes(model):
        if node.domain == _ASIDE:
            node.domain = ""
    kept = [each for each in model.opset_import if each.domain != _ASIDE]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _convert_opset(model: onnx.ModelProto, opset: int, target: int, name: str) -> onnx.ModelProto:
    try:
        data = _put_aside(model, opset).SerializeToString()
        answer = isolated(_converted, data, target, seconds=SECONDS)
        converted: onnx.ModelProto = onnx.ModelProto.FromString(answer)
    except (Failure, Crash, EncodeError) as error:
        reason = reason_of(error)
        raise ModelError(
            f'The model "{name}" uses opset {opset} and can\'t be converted to opset {target} '
            f"({reason}); export it again with an opset between {MIN_OPSET} and {max_opset()}."
        ) from error
    _put_back(converted)
    if opset < _HALF_PIXEL_OPSET:
        _sample_as_before(converted)
    return converted


def _converted(model: bytes, target: int) -> bytes:
    """The result of ONNX's converter in a child process, since a damaged model can crash it."""
    converted = version_converter.convert_version(onnx.ModelProto.FromString(model), target)
    data: bytes = converted.SerializeToString()
    return data


def _sample_as_before(model: onnx.ModelProto) -> None:
    """Let Resize sample as before opset 11, which the converter leaves out."""
    for node in all_nodes(model):
        if node.op_type == "Resize" and node.domain in DEFAULT_DOMAINS:
            kept = [a for a in node.attribute if a.name == "mode"]
            del node.attribute[:]
            node.attribute.extend(kept)
            node.attribute.append(
                onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric")
            )
            node.attribute.append(onnx.helper.make_attribute("nearest_mode", "floor"))


ML_DOMAIN = "ai.onnx.ml"

UNSTATED = {"": SURE_OPSET, ML_DOMAIN: 5, "com.microsoft": 1}
"""The version that is taken of a domain which a model uses and doesn't import."""


def unify_domains(model: onnx.ModelProto) -> None:
    """Spell ONNX's own domain "", with one import for each domain, none missing; in place.

    ONNX Runtime treats "ai.onnx" and "" as the same, and uses the last of several imports of a
    domain.
    """
    for node in all_nodes(model):
        node.domain = _spelt(node.domain)
    used = {node.domain for node in nested_protos(model.graph.node)}
    _unify_imports(model, used)
    for function in model.functions:
        function.domain = _spelt(function.domain)
        _unify_imports(function, set())


def _spelt(domain: str) -> str:
    return "" if domain in DEFAULT_DOMAINS else domain


def _unify_imports(holder: onnx.ModelProto | onnx.FunctionProto, used: set[str]) -> None:
    versions = {_spelt(each.domain): each.version for each in holder.opset_import}
    missing = {
        domain: UNSTATED[domain] for domain in sorted(used & UNSTATED.keys() - versions.keys())
    }
    del holder.opset_import[:]
    for domain, version in {**versions, **missing}.items():
        holder.opset_import.append(onnx.helper.make_opsetid(domain, version))
