"""A copy of a model that also gives tensors from its inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxq.export.constants import CODES


def find_tensors(graph: ir.Graph) -> dict[str, ir.Value]:
    """The values that hold the tensors of a graph, by the tensor's name: floats or their codes."""
    values = {str(value.name): value for node in graph for value in node.outputs}
    coded = {name.removesuffix(CODES): v for name, v in values.items() if name.endswith(CODES)}
    return {**coded, **values}


def with_outputs(model: ir.Model, tensors: Sequence[str]) -> ir.Model:
    """A copy of a model with more outputs; codes are made float by a DequantizeLinear.

    Args:
        model: not changed.
        tensors: names out of `find_tensors`.
    """
    model = model.clone(deep_copy=False)
    graph = model.graph
    found = find_tensors(graph)
    present = {output.name for output in graph.outputs}
    for name in dict.fromkeys(tensors):
        if name not in present:
            graph.outputs.append(_real(graph, name, found))
    ir.external_data.load_to_model(model)
    return model


def _real(graph: ir.Graph, name: str, found: Mapping[str, ir.Value]) -> ir.Value:
    value = found[name]
    if value.name != name:
        quantize = _quantizer(value)
        node = ir.node("DequantizeLinear", [value, *quantize.inputs[1:]], name=f"{name}.probe")
        graph.append(node)
        value = node.outputs[0]
        value.name = name
    if value.type is None:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    return value


def _quantizer(codes: ir.Value) -> ir.Node:
    """The QuantizeLinear that codes come from, whatever moved them since."""
    node = codes.producer()
    while node is not None and node.op_type != "QuantizeLinear":
        source = node.inputs[0]
        node = None if source is None else source.producer()
    assert node is not None
    return node
