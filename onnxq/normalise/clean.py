"""Clean-up of a graph: onnxsim, idle and dead nodes, missing names."""

from __future__ import annotations

import logging
import re
from collections import Counter
from typing import ClassVar

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from onnxq.errors import reason_of
from onnxq.graph.editor import Editor, Names, free_initializer
from onnxq.graph.facts import (
    constant,
    input_at,
    is_constant,
    is_used,
)
from onnxq.graph.operators import TABLE, WEIGHT_OPERATORS, weight_index
from onnxq.normalise.passes import NodePass, PassResult
from onnxq.runtime.weight_files import SMALLEST, is_large


class RemoveIdentity(NodePass):
    """Removes Identity, inference Dropout, and operators whose parameters change nothing.

    The latter are Cast to the same dtype, Concat, Sum, Max and Min of one input, Transpose in the
    same order, and Pad by nothing.
    """

    op_types: ClassVar[frozenset[str]] = frozenset(
        {"Identity", "Dropout", "Cast", "Concat", "Sum", "Max", "Min", "Transpose", "Pad"}
    )

    def refusal(self, node: ir.Node) -> str | None:
        """Why the node stays; None where it goes."""
        source, target = node.inputs[0], node.outputs[0]
        if source is None:
            return "it has no input"
        if reason := _change(node):
            return reason
        if not target.is_graph_output():
            return None
        if source.is_graph_input() or source.is_initializer() or source.is_graph_output():
            return "it carries the name of a graph output"
        if source.producer() is None or source.producer().graph is not node.graph:  # type: ignore[union-attr]
            return "its input belongs to another graph"
        return None

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """Give the input to the readers of the output."""
        source, target = node.inputs[0], node.outputs[0]
        assert source is not None
        if target.is_graph_output():
            editor.take_over(target, source)
        else:
            target.replace_all_uses_with(source)
        editor.remove([node])


def _change(node: ir.Node) -> str | None:
    match node.op_type:
        case "Identity":
            return None
        case "Dropout":
            return _dropout_change(node)
        case "Cast":
            return _cast_change(node)
        case "Transpose":
            order = node.attributes.get_ints("perm")
            same = order is not None and list(order) == sorted(order)
            return None if same else "it changes the order of the axes"
        case "Pad":
            pads = constant(input_at(node, 1))
            nothing = pads is not None and not pads.any()
            return None if nothing else "it pads, or its pads are not constant"
        case _:
            return None if len(node.inputs) == 1 else "it has several inputs"


def _dropout_change(node: ir.Node) -> str | None:
    if len(node.outputs) > 1 and is_used(node.outputs[1]):
        return "its mask is used"
    training = input_at(node, 2)
    mode = constant(training)
    if training is not None and (mode is None or mode.any()):
        return "it is in training mode"
    return None


def _cast_change(node: ir.Node) -> str | None:
    source = node.inputs[0]
    dtype = None if source is None else source.dtype
    if dtype is None:
        return "the dtype of its input is not known"
    return None if int(dtype) == node.attributes.get_int("to", 0) else "it changes the dtype"


_GENERATED = re.compile(r"|\d+|onnx::.*|_v_\d+|val_\d+")
"""Names of values that mean nothing: exporters and onnxsim number them."""

_PARAMETER = re.compile(r"[._/](weight|kernel|w)$", re.IGNORECASE)
"""What the name of a weight has behind that of its layer."""


class NameEverything:
    """Gives each node and value of the model a name that is unique in the whole model.

    Existing names are kept; a duplicate gets a number behind it. A layer without a name is called
    after its weight or its output (`encoder.0.key/MatMul`), any other node after its operator and
    its place among those (`Relu_3`), a value after its node. Inputs and outputs of the main graph
    keep their names. Visits the main graph and all sub-graphs.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """The model and whether any name was changed."""
        graph = model.graph
        fixed = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
        names = Names(str(value.name) for value in fixed)
        kept = {id(value) for value in fixed}
        changed = _name_nodes(graph)
        for each in model.graphs():
            changed |= _name_values(each, names, kept)
        return PassResult(model, changed)


def _name_nodes(graph: ir.Graph) -> bool:
    names = Names()
    nodes = list(graph.all_nodes())
    counts: Counter[str] = Counter()
    existing = {node.name for node in nodes if node.name}
    changed = False
    for node in nodes:
        wanted = node.name or _layer_name(node) or f"{node.op_type}_{counts[node.op_type]}"
        while not node.name and wanted in existing:
            counts[node.op_type] += 1
            wanted = f"{node.op_type}_{counts[node.op_type]}"
        counts[node.op_type] += not node.name
        claimed = names.claim(wanted)
        changed |= claimed != node.name
        node.name = claimed
    return changed


def _layer_name(node: ir.Node) -> str | None:
    """A name for a layer, from those of its weight or output; None where these mean nothing."""
    index = weight_index(node.op_type)
    if node.op_type not in (*WEIGHT_OPERATORS, TABLE) or len(node.inputs) <= index:
        return None
    weight, output = node.inputs[index], node.outputs[0]
    if weight is None or not is_constant(weight):
        return None
    for value in (weight, output):
        if not _GENERATED.fullmatch(value.name or ""):
            return f"{_PARAMETER.sub('', str(value.name))}/{node.op_type}"
    return None


def _name_values(graph: ir.Graph, names: Names, kept: set[int]) -> bool:
    changed = False
    values = [(value, "input") for value in graph.inputs]
    values += [(value, "constant") for value in graph.initializers.values()]
    for node in graph:
        values += [(value, f"{node.name}_output") for value in node.outputs]
    for value, base in values:
        if id(value) in kept or (not value.name and not is_used(value)):
            continue  # an output without a name is one that the node does not give
        claimed = names.claim(value.name or base)
        changed |= claimed != value.name
        if claimed != value.name:
            value.name = claimed
    return changed


class SweepDead:
    """Removes nodes and initializers that no output depends on; graph inputs stay."""

    def __call__(self, model: ir.Model) -> PassResult:
        """The model and whether anything was removed."""
        result = common.RemoveUnusedNodesPass()(model)
        return PassResult(model, bool(result.modified))


logger = logging.getLogger(__name__)


class Simplify:
    """Replaces the model by onnxsim's result, with BatchNormalization kept.

    onnxsim folds constants whatever their size, while `FoldConstants` weighs the bytes. Large
    weights are inputs for onnxsim, so that it makes no copies of them. This is the protobuf
    hand-off of the stage. A model that onnxsim rejects is returned unchanged, with a note.
    `modified` compares the serialized graphs.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """The simplified model, a new object."""
        # Loads for a third of a second, and only a model that is quantized needs it.
        import onnxsim

        light, weights = _without_large_weights(model)
        proto = ir.to_proto(light)
        try:
            simplified, _ = onnxsim.simplify(proto, skip_fuse_bn=True, skip_constant_folding=True)
        except Exception as error:
            # Its exceptions come from C++ and share no base class but Exception.
            return _left_alone(model, reason_of(error))
        if _interface(simplified) != _interface(proto):
            return _left_alone(model, "it changed the names of inputs or outputs")
        if simplified.graph == proto.graph:
            return PassResult(model, modified=False)
        result = _with_weights(ir.from_proto(simplified), weights)
        result.ir_version = model.ir_version
        result.metadata_props.clear()  # onnxsim writes down its own options
        result.metadata_props.update(model.metadata_props)
        result.producer_name, result.producer_version = model.producer_name, model.producer_version
        _keep_layer_names(model.graph, result.graph)
        return PassResult(result, modified=True)


def _keep_layer_names(original: ir.Graph, simplified: ir.Graph) -> None:
    """Name the layers that onnxsim made after the nodes that read their constants before."""
    kept, known = ({node.name for node in graph} for graph in (simplified, original))
    readers: dict[str, list[str]] = {}
    for node in original:
        for value in node.inputs:
            if value is not None and is_constant(value) and node.name not in kept:
                readers.setdefault(str(value.name), []).append(str(node.name))
    for node in simplified:
        if node.name in known or node.op_type not in WEIGHT_OPERATORS:
            continue
        names = (readers.get(str(value.name)) for value in node.inputs[1:] if value is not None)
        found = next(filter(None, names), None)
        node.name = found.pop(0) if found else None


Weights = dict[str, ir.TensorProtocol]


def _without_large_weights(model: ir.Model) -> tuple[ir.Model, Weights]:
    """A copy whose large weights are inputs, and these by name; of a small model, itself."""
    if not is_large(model):
        return model, {}
    copy = model.clone(deep_copy=False)
    graph, weights = copy.graph, Weights()
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= SMALLEST:
            weights[name] = tensor
            free_initializer(graph, value)
    return copy, weights


def _with_weights(model: ir.Model, weights: Weights) -> ir.Model:
    """Make these inputs constants again, in place."""
    for value in list(model.graph.inputs):
        if value.name in weights:
            model.graph.inputs.remove(value)
            value.const_value = weights[value.name]
            model.graph.register_initializer(value)
    return model


def _interface(proto: onnx.ModelProto) -> list[list[str]]:
    return [[v.name for v in proto.graph.input], [v.name for v in proto.graph.output]]


def _left_alone(model: ir.Model, reason: str) -> PassResult:
    note = f"onnxsim did not simplify the model ({reason}); onnxq's own passes run all the same."
    logger.debug(note)
    return PassResult(model, modified=False, notes=(note,))
