"""Nodes that hand their input on unchanged."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import (
    constant,
    input_at,
    int_attribute,
    ints_attribute,
    is_used,
)
from onnxq.normalise.passes import NodePass


class RemoveIdentity(NodePass):
    """Removes Identity, inference Dropout, and operators whose parameters change nothing.

    The latter are Cast to the same dtype, Concat, Sum, Max and Min of one input, Transpose
    in the same order, and Pad by nothing.
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
            order = ints_attribute(node, "perm")
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
    return None if int(dtype) == int_attribute(node, "to", 0) else "it changes the dtype"
