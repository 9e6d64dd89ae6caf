"""Models in float16, bfloat16 or float64, converted to float32 for all computations.

Weights, constants, attributes that name an element type, and types of values are changed; the graph
is not. The original types are recorded in the model's metadata, which clones keep. With them,
weights that stay float are written in 16 bits again, and sizes are compared.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from onnxq.errors import ModelError

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""Floats of 16 bits."""

STORED_KEY = "onnxq.stored"
"""The key of metadata, of a loaded model and of the file made of it, for what the original has in
other types than float32, as JSON."""

LEAST_HALVED = 64
"""Least elements of a constant to store in 16 bits: with fewer, the Cast costs what they save."""

_OTHERS = (*HALVES, ir.DataType.DOUBLE)
_FLOATS = (ir.DataType.FLOAT, *_OTHERS)

_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_datatype", "stash_type", "softmax_precision"})
"""Attributes of ONNX's operators that hold an element type."""


def compute_in_float32(model: ir.Model) -> frozenset[ir.DataType]:
    """Convert a model's other float types to float32, in place.

    float64 stays where it only serves to compute shapes and indices: where neither an input nor an
    output has it, and no weight of two dimensions or more.

    Args:
        model: any, with its functions inlined.

    Returns:
        The types that were converted.
    """
    model.metadata_props.pop(STORED_KEY, None)
    stored = _stored_bytes(model)
    gone = _present(model) & set(HALVES)
    if _is_double(model):
        gone.add(ir.DataType.DOUBLE)
    if not gone:
        return frozenset()
    held = sorted(gone | {ir.DataType.FLOAT})
    taken = {str(value.name): value.dtype for value in model.graph.inputs if value.dtype in gone}
    note = {
        "bytes": {each.name: stored[each] for each in held},
        "inputs": {name: dtype.name for name, dtype in taken.items() if dtype is not None},
    }
    model.metadata_props[STORED_KEY] = json.dumps(note)
    for graph in list(model.graphs()):
        _convert_values(graph, gone)
        for node in graph:
            _convert_attributes(node, gone)
    return frozenset(gone)


def has_other_floats(model: ir.Model) -> bool:
    """Whether anything in a model has a float type other than float32."""
    return bool(_present(model) & set(_OTHERS))


def gives_bfloat16(model: ir.Model) -> bool:
    """Whether an input or output is bfloat16, which ONNX Runtime can't be fed from numpy."""
    ends = [*model.graph.inputs, *model.graph.outputs]
    return any(_element(value.type) is ir.DataType.BFLOAT16 for value in ends)


def stored_type(model: ir.Model) -> ir.DataType:
    """The float type of most bytes of the weights in the loaded file."""
    stored = _noted_bytes(model)
    return max(stored, key=lambda each: stored[each], default=ir.DataType.FLOAT)


def half_type(model: ir.Model) -> ir.DataType | None:
    """The 16-bit float type of weights in the loaded file; None where there was none."""
    stored = {each: size for each, size in _noted_bytes(model).items() if each in HALVES and size}
    return max(stored, key=lambda each: stored[each], default=None)


def float_types_notes(model: ir.Model) -> list[str]:
    """Notes for the user on the float types that were converted."""
    gone = [np.dtype(each.numpy()).name for each in _noted_bytes(model) if each in _OTHERS]
    text = (
        f"the original's {' and '.join(gone)} is computed in float32; its inputs and outputs keep "
        "their types"
    )
    return [text] if gone else []


def halved_constants(model: ir.Model) -> dict[str, np.ndarray]:
    """The float32 constants of the main graph that a file stores in 16 bits, as the original did.

    Nothing is rounded: values that are not exact in 16 bits stay float32.

    Args:
        model: a loaded one, or one that was made from it.

    Returns:
        The 16-bit arrays by name.
    """
    dtype = half_type(model)
    if dtype is None:
        return {}
    found = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype is not ir.DataType.FLOAT or value.is_graph_output():
            continue
        half = _exact_half(tensor, dtype) if tensor.size >= LEAST_HALVED else None
        if half is not None:
            found[name] = half
    return found


def _exact_half(tensor: ir.TensorProtocol, dtype: ir.DataType) -> np.ndarray | None:
    array = tensor.numpy()
    with np.errstate(over="ignore"):
        half = array.astype(dtype.numpy())
    same = np.array_equal(half.astype(np.float32), array, equal_nan=True)
    return half if same else None


def to_float32(array: np.ndarray) -> np.ndarray:
    """The values in float32; finite ones stay finite, since masks may hold the lowest float64."""
    bound = np.finfo(np.float32).max
    if array.dtype == np.float64:
        array = np.where(np.isfinite(array), np.clip(array, -bound, bound), array)
    return array.astype(np.float32)


def original_inputs(model: ir.Model) -> Mapping[str, np.dtype]:
    """The original types of a loaded model's inputs, by name, where they are not float32."""
    return {name: np.dtype(kind.numpy()) for name, kind in _noted(model)[1].items()}


def _noted_bytes(model: ir.Model) -> Mapping[ir.DataType, int]:
    return _noted(model)[0]


def _noted(model: ir.Model) -> tuple[Mapping[ir.DataType, int], Mapping[str, ir.DataType]]:
    """Bytes by type and types by input, from a loaded model's metadata or a written file's."""
    text = model.metadata_props.get(STORED_KEY)
    if text is None:
        return {}, {}
    try:
        noted = json.loads(text)
        sizes = {ir.DataType[name]: int(size) for name, size in noted["bytes"].items()}
        return sizes, {name: ir.DataType[kind] for name, kind in noted["inputs"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"The model's metadata '{STORED_KEY}' is not as onnxq writes it; remove it, or "
            "compress the original again."
        ) from error


def _stored_bytes(model: ir.Model) -> Counter[ir.DataType]:
    sizes: Counter[ir.DataType] = Counter()
    for tensor in _tensors(model):
        if tensor.dtype in _FLOATS:
            sizes[tensor.dtype] += tensor.nbytes
    return sizes


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Initializers and tensors in attributes, of every graph."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type is ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()


def _present(model: ir.Model) -> set[ir.DataType]:
    """The element types of all values, tensors and attributes."""
    found = {tensor.dtype for tensor in _tensors(model)}
    for graph in model.graphs():
        values = [*graph.inputs, *graph.outputs, *(v for node in graph for v in node.outputs)]
        found.update(each for value in values if (each := _element(value.type)) is not None)
        for node in graph:
            for attribute in node.attributes.values():
                if (named := _named_type(attribute)) is not None:
                    found.add(named)
    return found


def _is_double(model: ir.Model) -> bool:
    """Whether the model computes in float64, and not just sizes and indices."""
    ends = [*model.graph.inputs, *model.graph.outputs]
    if any(_element(value.type) is ir.DataType.DOUBLE for value in ends):
        return True
    return any(t.dtype is ir.DataType.DOUBLE and len(t.shape) >= 2 for t in _tensors(model))


def _convert_values(graph: ir.Graph, gone: set[ir.DataType]) -> None:
    for value in [*graph.inputs, *graph.outputs, *(v for node in graph for v in node.outputs)]:
        value.type = _converted(value.type, gone)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in gone:
            value.const_value = _float32(tensor, gone)
        value.type = _converted(value.type, gone)


def _convert_attributes(node: ir.Node, gone: set[ir.DataType]) -> None:
    for name, attribute in list(node.attributes.items()):
        change = _CHANGES.get(attribute.type)
        if change is not None and not attribute.is_ref():
            node.attributes[name] = ir.Attr(name, attribute.type, change(attribute.value, gone))
        elif _named_type(attribute) in gone:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)


def _named_type(attribute: ir.Attr) -> ir.DataType | None:
    """The element type that an attribute names, such as `to` of a Cast."""
    if attribute.type is not ir.AttributeType.INT or attribute.name not in _TYPE_ATTRIBUTES:
        return None
    if attribute.is_ref():
        return None
    number = attribute.as_int()
    return next((each for each in _FLOATS if each == number), None)


def _float32(tensor: ir.TensorProtocol, gone: set[ir.DataType]) -> ir.TensorProtocol:
    if tensor.dtype not in gone:
        return tensor
    return ir.tensor(to_float32(tensor.numpy()), name=tensor.name)


def _element(kind: ir.TypeProtocol | None) -> ir.DataType | None:
    """The element type at the bottom of a tensor, sequence or optional type."""
    while isinstance(kind, (ir.SequenceType, ir.OptionalType)):
        kind = kind.elem_type
    return kind.dtype if isinstance(kind, (ir.TensorType, ir.SparseTensorType)) else None


def _converted(kind: ir.TypeProtocol | None, gone: set[ir.DataType]) -> ir.TypeProtocol | None:
    if isinstance(kind, (ir.SequenceType, ir.OptionalType)):
        inner = _converted(kind.elem_type, gone)
        assert inner is not None
        return type(kind)(inner)
    if isinstance(kind, (ir.TensorType, ir.SparseTensorType)) and kind.dtype in gone:
        return type(kind)(ir.DataType.FLOAT)
    return kind


def _converted_in_shape(kind: ir.TypeAndShape, gone: set[ir.DataType]) -> ir.TypeAndShape:
    return ir.TypeAndShape(_converted(kind.type, gone), kind.shape)


_CHANGES: Mapping[ir.AttributeType, Callable[..., object]] = {
    ir.AttributeType.TENSOR: _float32,
    ir.AttributeType.TENSORS: lambda each, gone: [_float32(tensor, gone) for tensor in each],
    ir.AttributeType.TYPE_PROTO: _converted_in_shape,
}
"""How the value of an attribute changes, by its kind; graphs are visited by themselves."""
