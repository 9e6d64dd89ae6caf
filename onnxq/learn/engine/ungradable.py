"""Nodes that stand between the trainable inputs and the loss without a right gradient."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxq.graph.nested import has_subgraph
from onnxq.learn.engine.builtin import refuse_builtin
from onnxq.learn.engine.form import Form, make_form
from onnxq.learn.engine.gradients import find_rule
from onnxq.learn.engine.path import carrying_nodes, carrying_values, infer_types


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
    return refuse_builtin(form) if rule is None else rule.refuse(form)
