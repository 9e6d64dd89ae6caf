"""Nodes whose gradient onnxq defines become calls of model-local functions.

The name of a function holds a digest of its backward nodes and of the forward form, so
one name always means one definition: ONNX Runtime keeps the first definition that a
process registers under a name and ignores later ones.
"""

from __future__ import annotations

import hashlib

import onnx_ir as ir

from onnxq.learn.engine.definition import Definition, Step, register
from onnxq.learn.engine.form import Form, make_form
from onnxq.learn.engine.gradients import find_rule
from onnxq.learn.engine.path import carrying_nodes

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
        rule = find_rule(node)
        if rule is None:
            continue
        form = make_form(node, carrying, opset)
        order = _input_order(form)
        definition = Definition({index: place for place, index in enumerate(order)}, opset)
        rule.define(form, definition)
        steps = definition.finished(set(form.wanted))
        name = f"{node.op_type}_{_digest(form, steps)}"
        _add_function(model, node, name, order)
        register(f"{DOMAIN}::{name}", steps)
        _turn_into_call(node, name, order)
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


def _digest(form: Form, steps: list[Step]) -> str:
    attributes = sorted(str(attribute) for attribute in form.node.attributes.values())
    text = repr((form.node.domain, form.opset, attributes, _input_order(form), steps))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _add_function(model: ir.Model, node: ir.Node, name: str, order: list[int]) -> None:
    identifier = (DOMAIN, name, "")
    if identifier in model.functions:
        return
    inner = model.functions.get(node.op_identifier())
    if inner is not None:
        function = inner.clone()
        function.domain, function.name = DOMAIN, name
        inputs = list(function.inputs)
        function.inputs[:] = [inputs[index] for index in order]
    else:
        function = _single_node_function(node, name, order, model.opset_imports)
    model.functions[identifier] = function


def _single_node_function(
    node: ir.Node, name: str, order: list[int], opset_imports: dict[str, int]
) -> ir.Function:
    inputs = [None if v is None else ir.val(f"i{k}") for k, v in enumerate(node.inputs)]
    outputs = [ir.val(f"o{k}") for k in range(len(node.outputs))]
    body = ir.Node(
        node.domain, node.op_type, inputs, list(node.attributes.values()), outputs=outputs
    )
    graph = ir.Graph(
        [value for index in order if (value := inputs[index]) is not None],
        outputs,
        nodes=[body],
        opset_imports={k: v for k, v in opset_imports.items() if not k.startswith("onnxq")},
        name=name,
    )
    return ir.Function(DOMAIN, name, graph=graph, attributes=[])


def _turn_into_call(node: ir.Node, name: str, order: list[int]) -> None:
    """Make the node call its function; the values that it computes stay."""
    inputs = [node.inputs[index] for index in order]
    node.resize_inputs(len(inputs))
    for position, value in enumerate(inputs):
        node.replace_input_with(position, value)
    node.domain, node.op_type, node.version = DOMAIN, name, None
    node.attributes.clear()
