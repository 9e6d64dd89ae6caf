"""The gradient graph: a model with a loss, extended to compute the gradients.

Nodes whose gradient onnxq defines become calls of model-local functions. The name of a function
holds a digest of its backward nodes and of the forward form, so that one name always means one
definition: ONNX Runtime keeps the first definition that a process registers under a name and
ignores later ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import onnxruntime as ort
from onnx_ir import tape
from onnxruntime.capi import _pybind_state

from onnxq.engine.definition import Definition, Form, Rule, Step, make_form, register
from onnxq.engine.gradients import (
    carrying_nodes,
    carrying_values,
    find_rule,
    infer_types,
    ungradable,
)
from onnxq.errors import EngineError
from onnxq.runtime.session import session_form

DOMAIN = "onnxq.learn"
"""The domain of the wrapping functions; they exist in gradient graphs only."""


def wrap_nodes(model: ir.Model, carrying: set[ir.Value]) -> None:
    """Wrap, in place, the nodes that carry a gradient and have a rule; register their rules.

    Args:
        model: the student with its loss; only the main graph is visited.
        carrying: the values that carry a gradient; those of wrapped nodes stay in the graph.
    """
    opset = model.opset_imports[""]
    for node in carrying_nodes(model.graph, carrying):
        form = make_form(node, carrying, opset)
        rule = find_rule(form)
        if rule is None:
            continue
        order = _input_order(form)
        definition = Definition({index: place for place, index in enumerate(order)}, opset)
        rule.define(form, definition)
        steps = definition.finished(set(form.wanted))
        function = _make_function(model, form, rule, order)
        function.name = f"{node.op_type}_{_digest(function, steps)}"
        model.functions[function.identifier()] = function
        model.graph.opset_imports.update({step.domain: 1 for step in steps if step.domain})
        register(f"{DOMAIN}::{function.name}", steps)
        _turn_into_call(node, function.name, order)
    model.graph.opset_imports[DOMAIN] = 1


def separate_repeated_inputs(graph: ir.Graph, carrying: set[ir.Value]) -> None:
    """Give a graph input that a node reads twice (x * x) a second name, in place.

    The builder can't add up two gradients of one graph input from one node.
    """
    for node in carrying_nodes(graph, carrying):
        for index, value in enumerate(node.inputs):
            repeated = value in node.inputs[:index]
            if value is None or not repeated or value not in carrying or value.producer():
                continue
            identity = ir.node("Identity", [value])
            graph.insert_before(node, identity)
            identity.outputs[0].type, identity.outputs[0].shape = value.type, value.shape
            carrying.add(identity.outputs[0])
            node.replace_input_with(index, identity.outputs[0])


def _input_order(form: Form) -> list[int]:
    """The inputs that are present, those that need a gradient first.

    The builder drops the k-th output of any backward node where the call's k-th input
    needs no gradient, whatever that output is.
    """
    present = [index for index in range(len(form.node.inputs)) if form.has(index)]
    return sorted(present, key=lambda index: index not in form.wanted)


def _digest(function: ir.Function, steps: list[Step]) -> str:
    content = ir.to_proto(function).SerializeToString() + repr(steps).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _make_function(model: ir.Model, form: Form, rule: Rule, order: list[int]) -> ir.Function:
    """The forward pass of one node; what it calls already, or the node itself."""
    inner = model.functions.get(form.node.op_identifier())
    if inner is None:
        return _wrapping_function(form, rule, order, model.opset_imports)
    function = inner.clone()
    function.domain, function.name = DOMAIN, form.node.op_type
    inputs = list(function.inputs)
    function.inputs[:] = [inputs[index] for index in order]
    return function


def _wrapping_function(
    form: Form, rule: Rule, order: list[int], opset_imports: dict[str, int]
) -> ir.Function:
    inputs = [None if v is None else ir.val(f"i{k}") for k, v in enumerate(form.node.inputs)]
    nodes, outputs = _body(form, rule, inputs)
    graph = ir.Graph(
        [value for index in order if (value := inputs[index]) is not None],
        outputs,
        nodes=nodes,
        opset_imports={
            **{k: v for k, v in opset_imports.items() if not k.startswith("onnxq")},
            **{node.domain: 1 for node in nodes if node.domain},
        },
        name=form.node.op_type,
    )
    return ir.Function(DOMAIN, form.node.op_type, graph=graph, attributes=[])


def _body(
    form: Form, rule: Rule, inputs: list[ir.Value | None]
) -> tuple[list[ir.Node], list[ir.Value]]:
    """The function's nodes and outputs: the operator itself, or what the rule writes for it."""
    if rule.forward is not None:
        body = tape.Tape()
        result = rule.forward(form, body, inputs)
        return list(body.nodes), [result]
    outputs = [ir.val(f"o{k}") for k in range(len(form.node.outputs))]
    attributes = list(form.node.attributes.values())
    node = ir.Node(form.node.domain, form.node.op_type, inputs, attributes, outputs=outputs)
    return [node], outputs


def _turn_into_call(node: ir.Node, name: str, order: list[int]) -> None:
    """Make the node call its function; the values that it computes stay."""
    inputs = [node.inputs[index] for index in order]
    node.resize_inputs(len(inputs))
    for position, value in enumerate(inputs):
        node.replace_input_with(position, value)
    node.domain, node.op_type, node.version = DOMAIN, name, None
    node.attributes.clear()


FATAL_ONLY = 4
"""The highest of ONNX Runtime's log levels; failures are raised as exceptions anyway."""


def build_gradient_graph(
    model: ir.Model, trainable: Sequence[str], loss: str, extra_outputs: Sequence[str]
) -> tuple[bytes, list[str]]:
    """A model whose outputs are loss, extra outputs and one ``<name>_grad`` per parameter.

    Args:
        model: the student with its loss; it isn't changed.
        trainable: float graph inputs.
        loss: name of a graph output with one element.
        extra_outputs: names of further graph outputs to keep.

    Returns:
        The serialized model, and the trainable inputs that the loss depends on, in order: only they
            have a gradient output.

    Raises:
        EngineError: a node between them has no gradient, or the builder refuses the model.
    """
    prepared = model.clone()
    _keep_outputs(prepared, [loss, *extra_outputs])
    infer_types(prepared)
    carrying = carrying_values(prepared.graph, trainable, [loss])
    names = {value.name for value in carrying}
    reached = [name for name in trainable if name in names]
    if not reached:
        raise EngineError(
            f"the loss '{loss}' depends on none of the {len(trainable)} trainable inputs; "
            "name inputs that lead to it."
        )
    if refused := ungradable(prepared, carrying):
        name, op_type, reason = refused[0]
        raise EngineError(
            f"no gradient passes the node '{name}' ({op_type}): {reason}; "
            "freeze the layers before it."
        )
    separate_repeated_inputs(prepared.graph, carrying)
    wrap_nodes(prepared, carrying)
    common_passes.RemoveUnusedFunctionsPass()(prepared)  # type: ignore[no-untyped-call] # ir's
    proto = _differentiate(ir.to_proto(session_form(prepared)), reached, loss)
    prune(proto, [loss, *extra_outputs, *(f"{name}_grad" for name in reached)])
    return proto.SerializeToString(), reached


def prune(proto: onnx.ModelProto, outputs: Sequence[str]) -> None:
    """Keep what the outputs need, in place.

    An output of ConvGrad that nobody reads is blanked: the builder names it even where it
    isn't wanted, and the kernel would compute it.
    """
    graph = proto.graph
    by_name = {value.name: value for value in graph.output}
    kept = [by_name[name] for name in outputs]
    del graph.output[:]
    graph.output.extend(kept)
    needed = set(outputs)
    nodes = []
    for node in reversed(graph.node):
        if not needed.intersection(filter(None, node.output)):
            continue
        if node.op_type == "ConvGrad":
            node.output[:] = [name if name in needed else "" for name in node.output]
        needed.update(_reads(node))
        nodes.append(node)
    nodes.reverse()
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)


def _keep_outputs(model: ir.Model, names: Sequence[str]) -> None:
    outputs = {value.name: value for value in model.graph.outputs}
    if missing := [name for name in names if name not in outputs]:
        raise EngineError(
            f"the graph has no output '{missing[0]}'; expected one of {sorted(map(str, outputs))}."
        )
    model.graph.outputs[:] = [outputs[name] for name in names]
    common_passes.RemoveUnusedNodesPass()(model)


def _differentiate(proto: onnx.ModelProto, trainable: list[str], loss: str) -> onnx.ModelProto:
    options = ort.SessionOptions()
    # By default the builder logs every graph transformer that it tries.
    options.log_severity_level = FATAL_ONLY
    try:
        builder = _pybind_state.GradientGraphBuilder(
            proto.SerializeToString(), {loss}, set(trainable), loss, options
        )
        builder.build()
    except RuntimeError as error:
        raise EngineError(
            f"no gradient of '{loss}' could be built: {error}; freeze the layers before that node."
        ) from error
    built = onnx.load_from_string(builder.get_model())
    known = {(function.domain, function.name) for function in built.functions}
    built.functions.extend(f for f in proto.functions if (f.domain, f.name) not in known)
    imported = {entry.domain for entry in built.opset_import}
    built.opset_import.extend(e for e in proto.opset_import if e.domain not in imported)
    return built


def _reads(node: onnx.NodeProto) -> set[str]:
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            for inner in graph.node:
                names |= _reads(inner)
            names.update(value.name for value in graph.output)
    return names
