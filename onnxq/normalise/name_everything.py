"""Unique, non-empty names for all nodes and values."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from onnxq.normalise.facts import is_used
from onnxq.normalise.names import Names
from onnxq.normalise.passes import PassResult


class NameEverything:
    """Gives each node and value of the model a name that is unique in the whole model.

    Existing names are kept; a second bearer of a name gets a number behind it. A node
    without a name is called after its operator and its place among those (`Conv_3`), a
    value after its node. Inputs and outputs of the main graph keep their names.
    Visits the main graph and all sub-graphs.
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
        wanted = node.name or f"{node.op_type}_{counts[node.op_type]}"
        while not node.name and wanted in existing:
            counts[node.op_type] += 1
            wanted = f"{node.op_type}_{counts[node.op_type]}"
        counts[node.op_type] += not node.name
        claimed = names.claim(wanted)
        changed |= claimed != node.name
        node.name = claimed
    return changed


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
