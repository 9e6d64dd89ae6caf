"""Build the student: a copy of the teacher with fake-quantized tensors, and its first parameters.

A tensor has the same name in both graphs. The parameters start from calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import onnx_ir as ir

from onnxq.calibrate.calibrator import TensorStatistics
from onnxq.graph.editor import free_initializer, insert_behind
from onnxq.graph.facts import constant, values_by_name
from onnxq.graph.fake_quant import add_functions, call
from onnxq.numerics.clip import ClipMethod, calibrated_range
from onnxq.numerics.clip_mse import weight_threshold
from onnxq.numerics.codebook import Codebook, fit_codebook, share_biases
from onnxq.numerics.quantizers import FloatArray, Range
from onnxq.plan.regions import root
from onnxq.plan.spec import LayerSpec, Plan, TensorSpec
from onnxq.student.qparams import QParams, bias_name, needs_bias, range_inputs
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
    return name in plan.integer_nodes or (index == 0 and name in plan.data_movement)


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


def initial_qparams(
    model: ir.Model, plan: Plan, statistics: Mapping[str, TensorStatistics], method: str
) -> QParams:
    """Ranges by each tensor's calibration method, thresholds by the recipe's, float weights.

    Args:
        model: the teacher.
        plan: the plan.
        statistics: of every tensor of the plan.
        method: the calibration method of the weights.
    """
    weights, biases = model_weights(model, plan)
    thresholds = {
        spec.weight: weight_threshold(weights[spec.weight], method, spec.num_bits, spec.axis)
        for spec in plan.layers.values()
        if spec.codebook is None
    }
    ranges = {
        name: calibrated_range(
            statistics[name], cast(ClipMethod, spec.calibration), spec.num_bits, spec.kind
        )
        for name, spec in plan.tensors.items()
    }
    codebooks = fit_codebooks(plan, weights)
    factors = model_factors(model, plan)
    return QParams(ranges, thresholds, weights, biases, codebooks=codebooks, factors=factors)


def full_ranges(plan: Plan, statistics: Mapping[str, TensorStatistics]) -> dict[str, Range]:
    """The range of all values that calibration saw, by tensor of the plan."""
    return {
        name: calibrated_range(statistics[name], "max", spec.num_bits, spec.kind)
        for name, spec in plan.tensors.items()
    }


def with_shared_biases(qparams: QParams, plan: Plan, count: int) -> QParams:
    """A copy with the biases of each quantized layer replaced by their K centroids, K = `count`."""
    biases = qparams.biases
    shared = {name: share_biases(biases[name], count) for name in plan.layers if name in biases}
    return qparams.with_biases(shared)


def fit_codebooks(plan: Plan, weights: Mapping[str, FloatArray]) -> dict[str, Codebook]:
    """The codebook of every weight that has one in the plan; int8 for integer kernels."""
    integer = {spec.weight for spec in plan.integer_layers()}
    found: dict[str, Codebook] = {}
    for spec in plan.layers.values():
        if spec.codebook is not None and spec.weight not in found:
            largest = spec.centroid_max if spec.weight in integer else None
            weight = weights[spec.weight]
            found[spec.weight] = fit_codebook(weight, spec.codebook, spec.axis, largest)
    return found


def model_weights(
    model: ir.Model, plan: Plan
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """The model's float weights by weight name, and its biases by layer name."""
    values = model.graph.initializers
    layers = [*plan.layers.values(), *plan.float_layers.values()]
    weights = {s.weight: _array(values[s.weight]) for s in layers}
    biases = {
        s.name: _spread(_array(values[s.bias]), weights[s.weight].shape[s.channel_axis])
        for s in layers
        if s.bias and needs_bias(s)
    }
    return weights, biases


def model_factors(model: ir.Model, plan: Plan) -> dict[str, FloatArray]:
    """The factor of each layer for a shared weight, float32 (channels,), by layer name."""
    values = model.graph.initializers
    return {
        spec.name: _spread(_array(values[spec.factor]), spec.channels)
        for spec in plan.layers.values()
        if spec.factor is not None
    }


def _spread(bias: FloatArray, channels: int) -> FloatArray:
    """A bias or factor as one value per channel, (channels,)."""
    return np.broadcast_to(bias.reshape(-1), (channels,)).copy()


def _array(value: ir.Value) -> FloatArray:
    array = constant(value)
    assert array is not None
    return np.asarray(array, dtype=np.float32)
