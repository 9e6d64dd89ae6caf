"""Nodes between the trainable inputs and the loss that have no right gradient."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from onnxq.engine.form import Form, make_form
from onnxq.engine.rules import find_rule
from onnxq.graph.cut import ancestors, dependents
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
