"""Build the student: a copy of the teacher with fake-quantized tensors.

A tensor has the same name in both graphs.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.editor import free_initializer, insert_behind
from onnxq.graph.facts import values_by_name
from onnxq.graph.fake_quant import add_functions, call
from onnxq.plan.regions import root
from onnxq.plan.spec import LayerSpec, Plan, TensorSpec
from onnxq.student.qparams import bias_name, needs_bias, range_inputs
from onnxq.student.student import Student

RAW = ".raw"
"""Suffix of a tensor's name before it is quantized."""
QUANTIZED = ".quantized"
"""Suffix of the quantized copy of a tensor that float nodes still read unchanged."""


def build_student(teacher: ir.Model, plan: Plan) -> Student:
    """A copy of the teacher with one fake-quant node per tensor, and its parameters as inputs.

    Args:
        teacher: the normalised float model; it isn't changed.
        plan: of its layers and tensors, from `make_plan`.
    """
    model = teacher.clone(deep_copy=False)
    graph = model.graph
    sources = layer_sources(graph, plan)
    values = values_by_name(graph)
    for spec in plan.tensors.values():
        _insert_fake_quant(graph, values[spec.name], spec, plan)
    for layer in (*plan.layers.values(), *plan.float_layers.values()):
        free_parameters(graph, layer)
    add_functions(model, {(spec.kind, spec.num_bits) for spec in plan.tensors.values()})
    graph.sort()
    return Student(model, plan, sources)


def layer_sources(graph: ir.Graph, plan: Plan) -> dict[str, str]:
    """By integer layer, the tensor whose quantized values it reads, before any data movement."""
    nodes = {node.name: node for node in graph}
    sources = {}
    for spec in plan.integer_layers():
        data = nodes[spec.name].inputs[0]
        assert data is not None
        sources[spec.name] = str(root(data).name)
    return sources


def _insert_fake_quant(graph: ir.Graph, value: ir.Value, spec: TensorSpec, plan: Plan) -> None:
    source, folded = value, None
    if spec.folded is not None:
        folded = value.producer()
        assert folded is not None and folded.inputs[0] is not None
        source = folded.inputs[0]
    inputs = [ir.val(name, ir.DataType.FLOAT, []) for name in range_inputs(spec)]
    graph.inputs.extend(inputs)
    node = call(spec.kind, spec.num_bits, source, *inputs)
    node.name = f"{spec.name}.fake_quant"
    quantized = node.outputs[0]
    quantized.type, quantized.shape = value.type, value.shape
    _move_readers(value, quantized, node, spec, plan)
    insert_behind(graph, source, [node])
    if folded is not None:
        graph.remove(folded, safe=True)


def _move_readers(
    value: ir.Value, quantized: ir.Value, node: ir.Node, spec: TensorSpec, plan: Plan
) -> None:
    """Connect integer readers, or all where an integer node wrote it, to the quantized form."""
    for reader, index in list(value.uses()):
        if reader is not node and (spec.integer or _reads_quantized(reader, index, plan)):
            reader.replace_input_with(index, quantized)
    name = str(value.name)
    if not spec.integer:
        quantized.name = name + QUANTIZED
        return
    graph = value.graph
    if graph is not None:
        for i, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[i] = quantized
    value.name = name + RAW
    quantized.name = name


def _reads_quantized(reader: ir.Node, index: int, plan: Plan) -> bool:
    name = str(reader.name)
    layer = plan.layers.get(name)
    if layer is not None:
        return index == 0 and layer.compute == "integer"
    return name in plan.integer_nodes or (index == 0 and name in plan.moves)


def free_parameters(graph: ir.Graph, spec: LayerSpec) -> None:
    """Turn the layer's weight, and its bias where it is a parameter, into graph inputs."""
    node = graph.node(spec.name)
    weight = graph.initializers.get(spec.weight)
    if weight is not None:
        free_initializer(graph, weight)
    if needs_bias(spec):
        bias = node.inputs[2]
        assert bias is not None
        # One value per channel, whatever the shape that the teacher's bias spreads from.
        fresh = ir.val(bias_name(spec), ir.DataType.FLOAT, [spec.channels])
        graph.inputs.append(fresh)
        node.replace_input_with(2, fresh)
        if not bias.uses():
            del graph.initializers[str(bias.name)]
