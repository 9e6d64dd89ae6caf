"""Outputs that hold constants or inputs unchanged, kept apart from what is quantized."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxq.graph.editor import Editor
from onnxq.graph.facts import constant, is_op, producer
from onnxq.graph.operators import is_data_movement
from onnxq.normalise.passes import PassResult


class OwnOutputs:
    """Gives graph outputs that hold constants or inputs, moved or joined, nodes of their own.

    What other nodes read can be quantized, and the outputs stay exact: a streaming model hands its
    inputs on from run to run.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """The model and whether any constant was copied."""
        editor = Editor(model.graph)
        modified = False
        for value in dict.fromkeys(model.graph.outputs):
            array = constant(value)
            if array is None or not value.uses():
                continue
            copy = editor.initializer(f"{value.name}_read", array)
            for reader, index in list(value.uses()):
                reader.replace_input_with(index, copy)
            modified = True
        return PassResult(model, _copy_moves(editor) or modified)


_CHANGING = ("MaxPool", "Resize")
"""Data-movement operators whose results are no copies."""


def _copy_moves(editor: Editor) -> bool:
    """Copy the nodes that move inputs to outputs, where other nodes read their results too."""
    graph = editor.graph
    floats = [v for v in dict.fromkeys(graph.outputs) if v.dtype == ir.DataType.FLOAT]
    paths = {value: _moves(value) for value in floats}
    moving = {node for path in paths.values() for node in path}
    copies: dict[ir.Value, ir.Value] = {}
    for value, path in paths.items():
        readers = [reader for node in path for out in node.outputs for reader in out.consumers()]
        if moving.issuperset(readers):
            continue
        for node in path:
            if node.outputs[0] not in copies:
                copies |= _copied(editor, node, copies)
        name, own = str(value.name), copies[value]
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = own
        value.name, own.name = editor.fresh_name(f"{name}_read"), name
        editor.remove(path)
    return bool(copies)


def _moves(value: ir.Value) -> list[ir.Node]:
    """The nodes that bring graph inputs to a value unchanged, in order; none where it is one."""
    found: dict[ir.Node, bool] = {}

    def holds_input(each: ir.Value | None) -> bool:
        node = producer(each)
        if each is None or node is None or node.graph is not value.graph:
            return each is not None and each.is_graph_input()
        if node not in found:
            read = node.inputs if is_op(node, "Concat") else node.inputs[:1]
            sources = [holds_input(source) for source in read if _copies(node)]
            found[node] = any(sources)
        return found[node]

    holds_input(value)
    return [node for node, holds in found.items() if holds]


def _copies(node: ir.Node) -> bool:
    """Whether a node gives elements of its input unchanged."""
    moves = is_data_movement(node) and node.op_type not in _CHANGING
    return moves or is_op(node, "Concat")


def _copied(
    editor: Editor, node: ir.Node, copies: Mapping[ir.Value, ir.Value]
) -> dict[ir.Value, ir.Value]:
    """A copy of a node behind it, which reads copies; its outputs by the node's own."""
    outputs = [
        ir.Value(name=editor.fresh_name(f"{out.name}_own"), type=out.type, shape=out.shape)
        for out in node.outputs
    ]
    inputs = [value if value is None else copies.get(value, value) for value in node.inputs]
    attributes = list(node.attributes.values())
    name = editor.fresh_name(f"{node.name}_own")
    made = ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs, name=name)
    editor.graph.insert_after(node, made)
    return dict(zip(node.outputs, outputs, strict=True))
