"""Inputs and outputs of a model: tensors of numbers, or refused."""

from __future__ import annotations

import onnx

from onnxq.errors import ModelError, reason_of

_T = onnx.TensorProto
_FLOATS = (_T.FLOAT, _T.FLOAT16, _T.BFLOAT16, _T.DOUBLE)
_SIGNED = (_T.INT8, _T.INT16, _T.INT32, _T.INT64)
_UNSIGNED = (_T.UINT8, _T.UINT16, _T.UINT32, _T.UINT64)
NUMBERS = frozenset((*_FLOATS, *_SIGNED, *_UNSIGNED, _T.BOOL))
"""Element types that samples can be given in and outputs compared in."""

ADVICE = {
    "input": "export the model with tensors of numbers as its inputs",
    "output": "remove it, or export the model without it (skl2onnx: zipmap=False)",
}


def check_types(model: onnx.ModelProto, name: str) -> None:
    """Refuse inputs and outputs that are not tensors of numbers.

    An output without a type gets the one that is inferred, if any: ONNX Runtime may know more.

    Args:
        model: the model; nothing but types of outputs is changed.
        name: the file's name, for the error.

    Raises:
        ModelError: names the first such input or output.
    """
    _infer_outputs(model, name)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    outputs = [value for value in model.graph.output if _has_type(value)]
    for what, values in (("input", inputs), ("output", outputs)):
        for value in values:
            if not _is_numbers(value.type):
                raise ModelError(
                    f'The {what} "{value.name}" of "{name}" is {_described(value.type)}, where a '
                    f"tensor of numbers is expected; {ADVICE[what]}."
                )


def _infer_outputs(model: onnx.ModelProto, name: str) -> None:
    """Give outputs without a type the one that ONNX infers, in place."""
    bare = [value for value in model.graph.output if not _has_type(value)]
    if not bare:
        return
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph.output
    except Exception as error:
        # Its exceptions come from C++ and share no base class but Exception.
        raise ModelError(
            f'The output "{bare[0].name}" of "{name}" has no type and none can be inferred '
            f"({reason_of(error)}); export the model with the types of its outputs."
        ) from error
    known = {value.name: value for value in inferred}
    for value in bare:
        value.type.CopyFrom(known[value.name].type)
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")  # a name that inference made up


def _has_type(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.WhichOneof("value")
    return kind is not None and (kind != "tensor_type" or value.type.tensor_type.elem_type != 0)


def _is_numbers(kind: onnx.TypeProto) -> bool:
    return kind.WhichOneof("value") == "tensor_type" and kind.tensor_type.elem_type in NUMBERS


def _described(kind: onnx.TypeProto) -> str:
    """A type in words, as in "sequence of map"."""
    form = kind.WhichOneof("value")
    if form is None:
        return "of no type"
    found = form.removesuffix("_type").replace("_", " ")
    inner = getattr(kind, form)
    if form in ("tensor_type", "sparse_tensor_type"):
        element = inner.elem_type
        known = element in _T.DataType.values()
        return f"of type {found} of {_T.DataType.Name(element).lower() if known else element}"
    if form in ("sequence_type", "optional_type"):
        return f"of type {found} of {_described(inner.elem_type).removeprefix('of type ')}"
    return f"of type {found}"
