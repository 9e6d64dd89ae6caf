"""The structure of a file: functions inlined, nodes sorted, and what can't be quantized refused.

That is unsupported types, unknown domains and quantized operators.
"""

from __future__ import annotations

import functools
import graphlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from onnxq.errors import ModelError, reason_of
from onnxq.graph.facts import DEFAULT_DOMAINS, nested_nodes

KNOWN_DOMAINS = DEFAULT_DOMAINS | {"ai.onnx.ml", "com.microsoft"}
"""Operator domains that stock ONNX Runtime implements."""

QUANTIZED_OPS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "MatMulNBits",
        "MatMulBnb4",
        "GatherBlockQuantized",
        "QGemm",
        "QAttention",
        "FusedMatMulInteger",
    }
)
"""Operators whose presence says that a model is quantized already; QLinear* besides."""


COMPRESSED_KEY = "onnxq.version"
"""The key of a model's metadata that says that onnxq wrote it."""


@functools.cache
def first_versions() -> Mapping[str, int]:
    """The first opset of each of ONNX's own operators, by name."""
    versions: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain in DEFAULT_DOMAINS:
            known = versions.get(schema.name, schema.since_version)
            versions[schema.name] = min(known, schema.since_version)
    return versions


def check_operators(model: onnx.ModelProto, name: str) -> None:
    """Refuse custom operators, quantized ones, and constants that read a value.

    Raises:
        ModelError: names the first such node.
    """
    if any(entry.key == COMPRESSED_KEY for entry in model.metadata_props):
        raise ModelError(
            f'The model "{name}" is already quantized (by onnxq: "onnxq inspect" shows how), '
            "where a float model is expected; give the float model that it was made from."
        )
    domains = KNOWN_DOMAINS | {function.domain for function in model.functions}
    functions = {function.name for function in model.functions}
    for node in all_nodes(model):
        if node.domain not in domains:
            raise ModelError(
                f'The node "{node_label(node)}" of "{name}" is the custom operator '
                f'"{node.domain}::{node.op_type}", which stock ONNX Runtime does not know; '
                "export the model with ONNX's own operators."
            )
        own = node.domain in DEFAULT_DOMAINS and node.op_type not in functions
        if own and node.op_type not in first_versions():
            raise ModelError(
                f'The node "{node_label(node)}" of "{name}" is a "{node.op_type}", which ONNX does '
                f"not have (up to opset {onnx.defs.onnx_opset_version()}); give the model as it "
                "was exported, before ONNX Runtime's optimizer changed it."
            )
        if own and node.op_type == "Constant" and any(node.input):
            # ONNX Runtime turns constants into initializers before it looks at their inputs.
            raise ModelError(
                f'The node "{node_label(node)}" of "{name}" is a "Constant" that reads '
                f'"{node.input[0]}", where constants have no inputs; export the model again.'
            )
        if node.op_type in QUANTIZED_OPS or node.op_type.startswith("QLinear"):
            raise ModelError(
                f'The model "{name}" is already quantized (node "{node_label(node)}" is a '
                f'"{node.op_type}"), where a float model is expected; '
                "give the float model that it was made from."
            )


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of the main graph, of its sub-graphs and of the model's functions."""
    yield from nested_protos(model.graph.node)
    for function in model.functions:
        yield from nested_protos(function.node)


def nested_protos(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes and those of their sub-graphs, at any depth."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                yield from nested_protos(graph.node)


def node_label(node: onnx.NodeProto) -> str:
    """The node's name or, where it has none, that of its first output."""
    return node.name or next(iter(node.output), "") or node.op_type


Identifier = tuple[str, str, str]
"""Domain, name and overload of a function, or of the operator that a node calls."""


def drop_idle_functions(model: onnx.ModelProto) -> None:
    """Remove functions that are never called and those named like an operator, in place.

    ONNX Runtime runs its operator where a function has the same name.

    Args:
        model: with domains spelt as `unify_domains` spells them.
    """
    versions = {each.domain: each.version for each in model.opset_import}
    functions = {
        _identifier(each, each.name): each
        for each in model.functions
        if not onnx.defs.has(each.name, versions.get(each.domain, 0), each.domain)
    }
    called: set[Identifier] = set()
    waiting = _calls(model.graph.node)
    while waiting:
        identifier = waiting.pop()
        if identifier in functions and identifier not in called:
            called.add(identifier)
            waiting += _calls(functions[identifier].node)
    kept = [each for identifier, each in functions.items() if identifier in called]
    del model.functions[:]
    model.functions.extend(kept)


def _identifier(each: onnx.NodeProto | onnx.FunctionProto, name: str) -> Identifier:
    return each.domain, name, each.overload


def _calls(nodes: Iterable[onnx.NodeProto]) -> list[Identifier]:
    return [_identifier(node, node.op_type) for node in nested_protos(nodes)]


def inline_functions(model: ir.Model, name: str) -> None:
    """Replace calls of functions by their nodes, in place.

    A body of another opset is read at the model's, as ONNX Runtime reads it.

    Args:
        model: the model.
        name: the file's name, for the error message.

    Raises:
        ModelError: functions call each other in a circle, or can't be inlined.
    """
    if not model.functions:
        return
    common.OutputFixPass()(model)  # a function that hands an input on has no value to rename
    for function in model.functions.values():
        function.opset_imports.update(
            {each: model.opset_imports[each] for each in _shared_domains(function, model)}
        )
    try:
        common.InlinePass()(model)
    except (ValueError, RuntimeError, ir.passes.InvariantError) as error:
        raise ModelError(
            f'The functions of "{name}" can\'t be put in the place of their calls '
            f"({reason_of(error)}); export the model without functions."
        ) from error
    common.RemoveUnusedOpsetsPass()(model)


def _shared_domains(function: ir.Function, model: ir.Model) -> list[str]:
    return [domain for domain in function.opset_imports if domain in model.opset_imports]


def sort_nodes(model: ir.Model, name: str) -> None:
    """Sort the nodes of all graphs and functions after those that they read from, in place.

    Args:
        model: the model; the order of sorted nodes stays.
        name: the file's name, for the error message.

    Raises:
        ModelError: nodes depend on each other in a circle.
    """
    try:
        common.TopologicalSortPass()(model)
    except ValueError as error:
        circle = " -> ".join(_label(node) for node in _find_circle(model))
        raise ModelError(
            f'The nodes of "{name}" depend on each other in a circle ({circle}), '
            "so that none of them can be computed first; export the model again."
        ) from error


def _find_circle(model: ir.Model) -> list[ir.Node]:
    """Nodes each of which reads from the one before it, and the first from the last."""
    before: dict[ir.Node, set[ir.Node]] = {}
    functions = (function.all_nodes() for function in model.functions.values())
    for node in chain(model.graph.all_nodes(), *functions):
        made_by = {each.producer() for each in node.inputs if each is not None}
        before[node] = {each for each in made_by | set(nested_nodes(node)) if each is not None}
    try:
        graphlib.TopologicalSorter(before).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def _label(node: ir.Node) -> str:
    return f'"{node.name or node.outputs[0].name}"'


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

    An output without a type gets the inferred one, if any: ONNX Runtime may know more.

    Args:
        model: the model; only types of outputs are changed.
        name: the file's name, for the error message.

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
