"""Nodes whose names and attributes can be relied on: whoever reads them need not ask."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from onnxq.errors import ModelError
from onnxq.load.limits import DEFAULT_DOMAINS, nested_nodes, node_label

LONGEST_NAME = 10_000
"""Characters of a name at most: names become those of members of archives, of 65,535 bytes."""

CONSTANT_VALUES = {
    "value": onnx.AttributeProto.TENSOR,
    "sparse_value": onnx.AttributeProto.SPARSE_TENSOR,
    "value_float": onnx.AttributeProto.FLOAT,
    "value_floats": onnx.AttributeProto.FLOATS,
    "value_int": onnx.AttributeProto.INT,
    "value_ints": onnx.AttributeProto.INTS,
    "value_string": onnx.AttributeProto.STRING,
    "value_strings": onnx.AttributeProto.STRINGS,
}
"""The types of a Constant's attributes, of which it has one."""


def check_attributes(model: onnx.ModelProto, name: str) -> None:
    """Refuse attributes without a type or a value, a Constant that holds nothing, endless names.

    Args:
        model: the message.
        name: the file's name, for the error.

    Raises:
        ModelError: names the first such node.
    """
    _check(nested_nodes(model.graph.node), name, in_function=False)
    for function in model.functions:
        _check(nested_nodes(function.node), name, in_function=True)


def _check(nodes: Iterable[onnx.NodeProto], name: str, *, in_function: bool) -> None:
    for node in nodes:
        reason = _refusal(node, in_function=in_function)
        if reason:
            raise ModelError(
                f'The node "{node_label(node)}" ({node.op_type}) of "{name}" {reason}; the file is '
                "damaged, so copy or export it again."
            )


def _refusal(node: onnx.NodeProto, *, in_function: bool) -> str:
    if max(len(each) for each in (node.name, *node.output)) > LONGEST_NAME:
        return f"has a name, or an output with a name, of more than {LONGEST_NAME:,} characters"
    for attribute in node.attribute:
        if attribute.ref_attr_name and in_function:
            continue
        if attribute.ref_attr_name:
            return f'has an attribute "{attribute.name}" that refers to one of a function'
        if attribute.type == onnx.AttributeProto.UNDEFINED:
            return f'has an attribute "{attribute.name}" without a type'
        if attribute.type == onnx.AttributeProto.TENSOR and not attribute.t.data_type:
            return f'has an attribute "{attribute.name}" without its tensor'
    own = node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS
    if own and [CONSTANT_VALUES.get(a.name) == a.type for a in node.attribute] != [True]:
        return "does not hold one value"
    return ""
