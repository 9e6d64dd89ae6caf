"""Read a model file into onnx-ir, in versions that the engine supports."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from onnxq.data.arrays import InputSpec
from onnxq.data.preprocess import Preprocess, find_preprocess
from onnxq.errors import ModelError
from onnxq.graph.facts import DEFAULT_DOMAINS
from onnxq.load.float_types import compute_in_float32, gives_bfloat16, has_other_floats
from onnxq.load.interface import Interface, input_specs, interface_of, note_interface, random_feeds
from onnxq.load.read import (
    check_opens,
    deserialize,
    load_external_data,
    read_graph,
    read_proto,
    run_model,
    unrepresentable,
)
from onnxq.load.structure import (
    check_operators,
    check_types,
    drop_idle_functions,
    inline_functions,
    sort_nodes,
)
from onnxq.load.tensors import put_in_weights, take_out_weights
from onnxq.load.version import (
    MIN_OPSET,
    convert_ir_version,
    convert_version,
    default_opset,
    unify_domains,
)
from onnxq.numerics.distances import find_difference
from onnxq.runtime.session import newest_ir_version, newest_opset

logger = logging.getLogger(__name__)


def load_model(path: str | os.PathLike[str], least_opset: int = MIN_OPSET) -> ir.Model:
    """The model of a file, in versions that ONNX Runtime reads, with its functions inlined.

    Initializers are no longer graph inputs afterwards, and float types are float32
    (`compute_in_float32`). Nothing else is changed. The file's inputs and outputs are recorded
    (`interface_of`).

    Args:
        path: an `.onnx` file; external data is read from beside it.
        least_opset: the oldest opset that the model may have afterwards.

    Raises:
        ModelError: not a file, not ONNX, truncated, external data missing, an opset out of range,
            custom operators, already quantized, or refused by ONNX Runtime.
    """
    path = Path(path)
    proto = read_proto(path)
    _check_complete(proto, path)
    unify_domains(proto)
    drop_idle_functions(proto)
    check_operators(proto, path.name)
    check_types(proto, path.name)
    load_external_data(proto, path)
    proto, weights = take_out_weights(proto)
    model = deserialize(proto, path.name)
    sort_nodes(model, path.name)
    inline_functions(model, path.name)
    model = _convert(model, path.name, least_opset)
    put_in_weights(model, weights, path.absolute().parent)
    model.ir_version = convert_ir_version(proto.ir_version, least_opset)
    common.RemoveInitializersFromInputsPass()(model)
    _trust_tensors(model)
    note_interface(model)
    changed = bool(compute_in_float32(model))
    check_opens(model, path.name)
    opset = default_opset(proto)
    if opset is not None and opset < model.opset_imports.get("", opset):
        original = in_float32(read_graph(path), path.name) if changed else path
        _check_conversion(proto, model, path.name, original)
    return model


def runnable(path: Path, model: ir.Model) -> Path | ir.Model:
    """The file, or what a session has to open instead where ONNX Runtime can't run the file.

    Args:
        path: the file.
        model: the model in it, unchanged.

    Returns:
        The file's path, or the model converted to versions that ONNX Runtime reads, or to float32
        where ONNX Runtime does not run its float type on a CPU.

    Raises:
        ModelError: the model is too new and can't be converted.
    """
    opset = max(model.opset_imports.get(domain, 0) for domain in DEFAULT_DOMAINS)
    if model.ir_version > newest_ir_version() or opset > newest_opset():
        return load_model(path)
    if not has_other_floats(model) or (not gives_bfloat16(model) and _opens(path)):
        return path
    return in_float32(read_graph(path), path.name)


def in_float32(model: ir.Model, name: str) -> ir.Model:
    """A model with its functions inlined and its other float types converted to float32.

    Args:
        model: changed in place.
        name: of its file, for error messages.
    """
    inline_functions(model, name)
    compute_in_float32(model)
    return model


def _opens(path: Path) -> bool:
    try:
        check_opens(path, path.name)
    except ModelError as error:
        logger.debug("'%s' does not run as it is: %s", path.name, error)
        return False
    return True


def _trust_tensors(model: ir.Model) -> None:
    """Give each initializer the type and shape of its tensor.

    Where a file declares others, ONNX Runtime's optimizer reads beyond the tensor.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            if (tensor := value.const_value) is not None:
                value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype


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


def _convert(model: ir.Model, name: str, least_opset: int) -> ir.Model:
    """The model at an opset in range; the same object where it is in range already."""
    try:
        proto = ir.to_proto(model)
    except ir.serde.SerdeError as error:
        raise unrepresentable(name, error) from error
    converted = convert_version(proto, name, least_opset)
    return model if converted is proto else deserialize(converted, name)


def _check_conversion(
    proto: onnx.ModelProto, model: ir.Model, name: str, original: Path | ir.Model
) -> None:
    """Compare the converted model with the original on random inputs.

    Args:
        proto: the model in the file.
        model: the converted one.
        name: of the file.
        original: what a session runs for the original, in the converted one's float types.

    Raises:
        ModelError: their outputs differ.
    """
    feeds = [random_feeds(input_specs(model), batch=1)]
    try:
        expected = run_model(original, feeds, optimise=False)
    except Exception as error:
        # ONNX Runtime's exceptions share no base class but Exception.
        logger.debug("the conversion of '%s' is not checked: %s", name, error)
        return
    found = run_model(model, feeds, optimise=False)
    names = [str(value.name) for value in model.graph.outputs]
    if (reason := find_difference(names, expected, found)) is not None:
        raise ModelError(
            f'The model "{name}" uses opset {default_opset(proto)} and converting it changes '
            f"what it computes ({reason}); export it again with opset {MIN_OPSET} or newer."
        )


@dataclass(frozen=True)
class Loaded:
    """A loaded model.

    Attributes:
        path: its file.
        model: in float32 throughout.
        interface: inputs and outputs of the file.
        preprocess: how an image becomes an input; None where unknown.
    """

    path: Path
    model: ir.Model
    interface: Interface
    preprocess: Preprocess | None

    @property
    def inputs(self) -> list[InputSpec]:
        """The inputs of the model."""
        return input_specs(self.model)


def load_original(path: Path, least_opset: int, preprocess: Preprocess | None) -> Loaded:
    """A model and its preprocessing.

    Args:
        path: the ONNX file.
        least_opset: the oldest opset that the model may have afterwards.
        preprocess: how an image becomes an input; None looks beside and inside the model.
    """
    model = load_model(path, least_opset)
    preprocess = preprocess or find_preprocess(path, model.metadata_props)
    return Loaded(path, model, interface_of(model), preprocess)
