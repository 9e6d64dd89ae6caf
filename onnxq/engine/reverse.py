"""Reverse mode: from a graph with a loss to a graph that also computes the gradients.

The nodes between the trainable inputs and the loss are visited from the loss back. Each
hands the gradients of its outputs on to its inputs by its rule; what several readers hand
to one value is added up. Where a node between them has no right gradient, that is said first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from onnxq.engine.builder import Builder, Writer
from onnxq.engine.form import Form, make_form
from onnxq.engine.rules import find_rule
from onnxq.errors import EngineError
from onnxq.graph.cut import ancestors, dependents
from onnxq.graph.editor import Editor, Names, taken_names
from onnxq.graph.facts import has_subgraph, reads

FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
)


def infer_types(model: ir.Model) -> None:
    """Fill in types and shapes, in place."""
    common_passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)


def carrying_values(
    graph: ir.Graph, trainable: Sequence[str], losses: Sequence[str]
) -> set[ir.Value]:
    """The float values that depend on a trainable input and that a loss depends on.

    Integer and boolean values end a path: shapes, indices and conditions have no gradient.
    A value of unknown type counts as float.

    Args:
        graph: main graph, sorted topologically; types should have been inferred.
        trainable: names of graph inputs.
        losses: names of graph outputs.
    """
    names = {*trainable, *losses}
    inputs = [value for value in graph.inputs if value.name in names]
    ends = [value for value in graph.outputs if value.name in names]
    return dependents(graph, inputs, is_float) & ancestors(graph, ends)


def carrying_nodes(graph: ir.Graph, carrying: set[ir.Value]) -> list[ir.Node]:
    """The nodes that a gradient passes through, in the graph's order."""
    return [
        node
        for node in graph
        if carrying.intersection(node.outputs) and carrying.intersection(reads(node))
    ]


def is_float(value: ir.Value) -> bool:
    """Whether a value may carry a gradient."""
    return value.dtype is None or value.dtype in FLOATS


def ungradable_nodes(
    model: ir.Model, trainable: Sequence[str], losses: Sequence[str] | None = None
) -> list[tuple[str, str, str]]:
    """The nodes that a gradient would have to pass but can't, as (name, op type, reason).

    Some forms of operators have no gradient, others would silently get a wrong one; both
    are found from the graph alone. Nothing is built or run.

    Args:
        model: a model; it isn't changed.
        trainable: names of float graph inputs.
        losses: names of graph outputs that the gradient starts from; None means all.
    """
    typed = model.clone()
    infer_types(typed)
    outputs = [str(value.name) for value in typed.graph.outputs] if losses is None else losses
    carrying = carrying_values(typed.graph, trainable, outputs)
    return ungradable(typed, carrying)


def ungradable(model: ir.Model, carrying: set[ir.Value]) -> list[tuple[str, str, str]]:
    """The same for a model with types and the values known to carry a gradient."""
    opset = model.opset_imports.get("", 0)
    return [
        (node.name or "", node.op_type, reason)
        for node in carrying_nodes(model.graph, carrying)
        if (reason := _refuse(make_form(node, carrying, opset))) is not None
    ]


def _refuse(form: Form) -> str | None:
    if has_subgraph(form.node):
        return "gradients do not pass through its sub-graphs"
    rule = find_rule(form)
    if rule is not None:
        return rule.refuse(form)
    where = f" for the domain '{form.node.domain}'" if form.node.domain else " for it"
    return "no gradient is known" + where


def gradient_graph(
    model: ir.Model,
    trainable: Sequence[str],
    loss: str,
    extra_outputs: Sequence[str],
    training_kernels: bool,
) -> tuple[ir.Model, dict[str, str]]:
    """A model that gives the loss, the extra outputs and then the gradients.

    Args:
        model: the student with its loss; it isn't changed.
        trainable: float graph inputs.
        loss: name of a graph output with one element.
        extra_outputs: names of further graph outputs to keep.
        training_kernels: whether the model runs on the training build, with its kernels.

    Returns:
        The model, and the names of its gradient outputs by trainable input, in order: only
        inputs that the loss depends on have one.

    Raises:
        EngineError: a node on the way has no gradient, or an output doesn't exist.
    """
    prepared = model.clone()
    _keep_outputs(prepared, [loss, *extra_outputs])
    infer_types(prepared)
    graph = prepared.graph
    carrying = carrying_values(graph, trainable, [loss])
    reached = [value for value in graph.inputs if value in carrying and value.name in trainable]
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
    names = Names(taken_names(graph))
    writer = Writer(prepared.opset_imports[""], names, training_kernels)
    found = _backward(graph, carrying, graph.outputs[0], writer)
    results = {str(value.name): _output(writer, value, found[value], names) for value in reached}
    graph.extend(writer.tape.nodes)
    graph.outputs.extend(results.values())
    _replace_forward(graph, carrying, writer.opset, names)
    common_passes.RemoveUnusedNodesPass()(prepared)
    domains = {node.domain for node in graph} - graph.opset_imports.keys()
    graph.opset_imports.update(dict.fromkeys(domains, 1))
    return prepared, {name: str(value.name) for name, value in results.items()}


def _backward(
    graph: ir.Graph, carrying: set[ir.Value], loss: ir.Value, writer: Writer
) -> dict[ir.Value, ir.Value]:
    """The gradient of each value that carries one."""
    parts: dict[ir.Value, list[ir.Value]] = {loss: [_ones_like(writer, loss)]}
    totals: dict[ir.Value, ir.Value] = {}

    def total(value: ir.Value) -> ir.Value | None:
        if value not in totals and value in parts:
            totals[value] = _sum(writer, parts[value])
            totals[value].type, totals[value].shape = value.type, value.shape
        return totals.get(value)

    for node in reversed(carrying_nodes(graph, carrying)):
        gradients = [total(value) for value in node.outputs]
        if all(each is None for each in gradients):
            continue
        form = make_form(node, carrying, writer.opset)
        rule = find_rule(form)
        assert rule is not None
        handed = rule.write(form, Builder(writer, node, gradients))
        for index in sorted(form.wanted):
            value = node.inputs[index]
            assert value is not None
            parts.setdefault(value, []).append(handed[index])
    return {value: found for value in parts if (found := total(value)) is not None}


def _ones_like(writer: Writer, loss: ir.Value) -> ir.Value:
    shape = writer.op("Shape", [loss])
    one = ir.tensor(np.ones(1, (loss.dtype or ir.DataType.FLOAT).numpy()))
    return writer.op("ConstantOfShape", [shape], {"value": one})


def _sum(writer: Writer, parts: list[ir.Value]) -> ir.Value:
    if len(parts) == 1:
        return parts[0]
    return writer.op("Add" if len(parts) == 2 else "Sum", parts)


def _output(writer: Writer, value: ir.Value, gradient: ir.Value, names: Names) -> ir.Value:
    """The gradient of an input as a graph output."""
    output = writer.op("Identity", [gradient])
    output.name, output.type = names.claim(f"{value.name}_grad"), value.type
    return output


def _replace_forward(graph: ir.Graph, carrying: set[ir.Value], opset: int, names: Names) -> None:
    """Put what rules write for the forward pass in the place of their nodes."""
    editor = Editor(graph)
    for node in carrying_nodes(graph, carrying):
        form = make_form(node, carrying, opset)
        rule, writer = find_rule(form), Writer(opset, names)
        if rule is None or rule.forward is None:
            continue
        if rule.forward(form, Builder(writer, node, [None])) is not None:
            editor.replace(node, writer.tape.nodes)


def _keep_outputs(model: ir.Model, names: Sequence[str]) -> None:
    outputs = {value.name: value for value in model.graph.outputs}
    if missing := [name for name in names if name not in outputs]:
        raise EngineError(
            f"the graph has no output '{missing[0]}'; expected one of {sorted(map(str, outputs))}."
        )
    model.graph.outputs[:] = [outputs[name] for name in names]
    common_passes.RemoveUnusedNodesPass()(model)
