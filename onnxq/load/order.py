"""Nodes in the order in which they can be computed."""

from __future__ import annotations

import graphlib
from itertools import chain

import onnx_ir as ir
from onnx_ir.passes import common

from onnxq.errors import ModelError
from onnxq.graph.nested import nested_nodes


def sort_nodes(model: ir.Model, name: str) -> None:
    """Put the nodes of all graphs and functions after those that they read from, in place.

    Args:
        model: the model; sorted nodes stay where they are.
        name: the file's name, for the error.

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
    """Nodes each of which reads from the one before it, the last from the first."""
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
