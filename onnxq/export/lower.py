"""Lower the student to QuantizeLinear and DequantizeLinear nodes with constant parameters.

There is one QuantizeLinear per tensor. Data-movement operators work on the quantized tensor, and
every other reader reads a DequantizeLinear. ONNX Runtime then fuses DQ -> operator -> Q into
integer kernels. Weights and biases are written as integers, without a float copy; those of float
layers that were retrained stay floats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.export.lookup import INTEGERS, add_lookup
from onnxq.export.stored_weight import REAL, SCALE, StoredWeight, dequantize, replace_input
from onnxq.graph.editor import add_initializer, fix_inputs
from onnxq.graph.facts import nested_nodes
from onnxq.graph.fake_quant import DOMAIN, parse_function_name
from onnxq.numerics.codebook import Codebook
from onnxq.numerics.quantizers import FloatArray, quantize_bias
from onnxq.plan.spec import BYTE_BITS, LayerSpec, Plan, TensorSpec, codebook_bytes
from onnxq.student.qparams import (
    QParams,
    bias_name,
    corrected_bias,
    fake_weight,
    needs_bias,
    range_inputs,
)
from onnxq.student.student import Student

MOST_CENTROIDS = 256
"""An index has 8 bits at most."""


def lower_weights(model: ir.Model, student: Student, qparams: QParams) -> None:
    """Replace the student's weight and bias inputs by integer constants, in place.

    Args:
        model: the lowered copy of the student.
        student: gives the plan, and the tensors that layers read.
        qparams: the quantization parameters to write.
    """
    graph = model.graph
    scales = student.weight_scales(qparams)
    inputs = {value.name: value for value in graph.inputs}
    nodes = {node.name: node for node in graph}
    # Of layers that share a weight, one on an integer kernel decides its form.
    layers = sorted(student.plan.layers.values(), key=lambda spec: spec.compute != "integer")
    weights: dict[str, StoredWeight] = {}
    for spec in layers:
        if spec.weight not in weights:
            weights[spec.weight] = StoredWeight(graph, spec, qparams, scales[spec.weight])
        weights[spec.weight].connect(nodes[spec.name], spec)
    for name, weight in weights.items():
        weight.replace(inputs[name])
    for spec in layers:
        if needs_bias(spec):
            real = _lower_bias(graph, spec, student, qparams, weights[spec.weight])
            replace_input(graph, inputs[bias_name(spec)], real)
    fix_inputs(graph, student.float_feeds(qparams))


def _lower_bias(
    graph: ir.Graph, spec: LayerSpec, student: Student, qparams: QParams, weight: StoredWeight
) -> ir.Value:
    name = bias_name(spec)
    bias = corrected_bias(spec, qparams, fake_weight(spec, qparams, weight.scale))
    if spec.compute == "weight-only":
        return _real_bias(graph, name, bias)
    scale = student.bias_scale(spec, qparams, weight.scale)
    integers = quantize_bias(bias, scale)
    stored = add_initializer(graph, f"{name}{INTEGERS}", integers.reshape(-1))
    of_bias = _bias_scale(graph, name, student.sources[spec.name], weight.scale_value(spec))
    return dequantize(graph, [stored, of_bias], 0 if scale.ndim else None, name)


def _bias_scale(graph: ir.Graph, name: str, source: str, weight: ir.Value) -> ir.Value:
    """s_in * s_w, computed when a session starts: a node is smaller than a scale per channel."""
    scales = [graph.initializers[f"{source}{SCALE}"], weight]
    node = ir.node("Mul", scales, name=f"{name}.rescale")
    node.outputs[0].name = f"{name}{SCALE}"
    graph.insert_before(graph[0], node)
    return node.outputs[0]


def _real_bias(graph: ir.Graph, name: str, bias: FloatArray) -> ir.Value:
    """A float bias, in the form of fewest bytes; all forms fold when a session starts."""
    values, indices = np.unique(bias, return_inverse=True)
    shared = 1 < values.size <= MOST_CENTROIDS
    if shared and codebook_bytes(bias.size, values.size, integer=False) < bias.nbytes:
        places = np.asarray(indices.reshape(bias.shape), np.uint8)
        return add_lookup(graph, name, Codebook(values, places, np.ones((), np.float32)))
    return add_initializer(graph, f"{name}{REAL}", bias)


WIDE = ".wide"
"""Suffix of an integer tensor before it is clipped to less than 8 bits."""


@dataclass
class Quantized:
    """An activation as integers, its scale and zero point, and its float value where one exists."""

    value: ir.Value
    scale: ir.Value
    zero_point: ir.Value
    name: str
    real: ir.Value | None = None


class Lowering:
    """Lowers a copy of the student's graph.

    Args:
        student: the student.
        qparams: the quantization parameters to write.
    """

    def __init__(self, student: Student, qparams: QParams) -> None:
        self.model = student.model.clone(deep_copy=False)
        self._graph = self.model.graph
        self._student = student
        self._qparams = qparams
        self._quantized: dict[ir.Value, Quantized] = {}
        self._specs = _specs_by_node(student.plan)

    def run(self) -> ir.Model:
        """The deployable model, without functions and parameter inputs."""
        for node in list(self._graph):
            self._lower(node)
        for i, output in enumerate(self._graph.outputs):
            if output in self._quantized:
                self._graph.outputs[i] = self._dequantized(self._quantized[output])
        lower_weights(self.model, self._student, self._qparams)
        self._drop_functions()
        self._graph.sort()
        return self.model

    def _lower(self, node: ir.Node) -> None:
        if node.domain == DOMAIN and parse_function_name(node.op_type):
            self._quantize(node)
        elif self._moves_integers(node):
            self._move(node)
        else:
            for reader in (node, *nested_nodes(node)):
                self._read_floats(reader)

    def _read_floats(self, node: ir.Node) -> None:
        for i, value in enumerate(node.inputs):
            if value in self._quantized:
                node.replace_input_with(i, self._dequantized(self._quantized[value]))

    def _quantize(self, node: ir.Node) -> None:
        spec, source, result = self._specs[str(node.name)], node.inputs[0], node.outputs[0]
        assert source is not None
        if source in self._quantized:
            source = self._dequantized(self._quantized[source])
        values = self._qparams.ranges[spec.name]
        scale, zero_point = spec.quantizer.scale_and_zero_point(values, spec.num_bits)
        scale_value = add_initializer(
            self._graph, f"{spec.name}{SCALE}", np.asarray(scale, np.float32)
        )
        zero_value = add_initializer(
            self._graph, f"{spec.name}.zero_point", np.asarray(zero_point, np.uint8)
        )
        quantize = ir.node(
            "QuantizeLinear", [source, scale_value, zero_value], name=f"{spec.name}.q"
        )
        integers = quantize.outputs[0]
        integers.name, integers.shape = spec.name + INTEGERS, result.shape
        integers.type = ir.TensorType(ir.DataType.UINT8)
        self._graph.insert_before(node, quantize)
        # QuantizeLinear clips to 8 bits by itself.
        if spec.num_bits < BYTE_BITS:
            integers = self._clip(integers, spec, node)
        self._quantized[result] = Quantized(integers, scale_value, zero_value, str(result.name))
        for name in range_inputs(spec):
            self._remove_input(name)

    def _clip(self, wide: ir.Value, spec: TensorSpec, before: ir.Node) -> ir.Value:
        """Integers within 0 ... 2^n - 1; a Clip of floats would leave the layer float."""
        ends = (0, spec.quantizer.largest(spec.num_bits))
        inputs = [wide, *(self._shared_integer(each) for each in ends)]
        clip = ir.node("Clip", inputs, name=f"{spec.name}.clip")
        integers = clip.outputs[0]
        wide.name, integers.name = spec.name + WIDE, spec.name + INTEGERS
        integers.type, integers.shape = wide.type, wide.shape
        self._graph.insert_before(before, clip)
        return integers

    def _shared_integer(self, value: int) -> ir.Value:
        name = f"codes.{value}"
        known = self._graph.initializers.get(name)
        integer = np.asarray(value, np.uint8)
        return known if known is not None else add_initializer(self._graph, name, integer)

    def _moves_integers(self, node: ir.Node) -> bool:
        return node.name in self._student.plan.data_movement and node.inputs[0] in self._quantized

    def _move(self, node: ir.Node) -> None:
        source = node.inputs[0]
        assert source is not None
        quantized = self._quantized[source]
        node.replace_input_with(0, quantized.value)
        if node.op_type == "Pad":
            self._pad_with_zero_point(node, quantized)
        for output in node.outputs:
            name = str(output.name)
            output.name = name + INTEGERS
            output.type = ir.TensorType(ir.DataType.UINT8)
            scale, zero_point = quantized.scale, quantized.zero_point
            self._quantized[output] = Quantized(output, scale, zero_point, name)

    def _pad_with_zero_point(self, node: ir.Node, quantized: Quantized) -> None:
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, quantized.zero_point)

    def _dequantized(self, quantized: Quantized) -> ir.Value:
        if quantized.real is None:
            inputs = [quantized.value, quantized.scale, quantized.zero_point]
            node = ir.node("DequantizeLinear", inputs, name=f"{quantized.name}.dq")
            quantized.real = node.outputs[0]
            quantized.real.name, quantized.real.shape = quantized.name, quantized.value.shape
            quantized.real.type = ir.TensorType(ir.DataType.FLOAT)
            producer = quantized.value.producer()
            assert producer is not None
            self._graph.insert_after(producer, node)
        return quantized.real

    def _remove_input(self, name: str) -> None:
        for value in list(self._graph.inputs):
            if value.name == name:
                self._graph.inputs.remove(value)

    def _drop_functions(self) -> None:
        for node in [n for n in self._graph if n.domain == DOMAIN]:
            for output in node.outputs:
                output.name = f"{node.name}.lowered"
            self._graph.remove(node, safe=True)
        self.model.functions.clear()
        self._graph.opset_imports.pop(DOMAIN, None)


def _specs_by_node(plan: Plan) -> dict[str, TensorSpec]:
    return {f"{spec.name}.fake_quant": spec for spec in plan.tensors.values()}
