"""Casts at the border of a float32 model: it takes and gives the types of the original."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.load.interface import Interface, Port

INSIDE = ".float32"
"""Suffix of an input or output as the network reads or writes it."""


def restore_types(model: ir.Model, interface: Interface) -> None:
    """Give inputs and outputs the types that the original has, in place.

    Args:
        model: computes in float32.
        interface: of the original.
    """
    graph = model.graph
    for value, port in zip(graph.inputs, interface.inputs, strict=True):
        if _differ(value, port):
            _cast_input(graph, value, port)
    for i, port in enumerate(interface.outputs):
        if _differ(graph.outputs[i], port):
            graph.outputs[i] = _cast_output(graph, graph.outputs[i], port)


def _differ(value: ir.Value, port: Port) -> bool:
    return port.type is not None and value.type is not None and value.type != port.type


def _cast_input(graph: ir.Graph, value: ir.Value, port: Port) -> None:
    assert port.type is not None and value.type is not None
    cast = _cast(value, value.type)
    inner = cast.outputs[0]
    inner.name = f"{value.name}{INSIDE}"
    readers = [(node, index) for node, index in value.uses() if node is not cast]
    for node, index in readers:
        node.replace_input_with(index, inner)
    value.type = port.type
    graph.insert_before(graph[0], cast)


def _cast_output(graph: ir.Graph, value: ir.Value, port: Port) -> ir.Value:
    assert port.type is not None
    cast = _cast(value, port.type)
    given, name = cast.outputs[0], str(value.name)
    value.name, given.name = f"{name}{INSIDE}", name
    given.shape = value.shape
    graph.append(cast)
    return given


def _cast(value: ir.Value, to: ir.TypeProtocol) -> ir.Node:
    node = ir.node("Cast", [value], {"to": to.dtype}, name="")
    node.outputs[0].type = to
    return node
