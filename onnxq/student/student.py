"""The student: the teacher with fake-quantized tensors, its numbers as named inputs.

Weights, biases and ranges enter as graph inputs, so that a candidate changes the feed and
not the graph. A tensor keeps its name in both graphs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.graph.cut import between
from onnxq.graph.facts import values_by_name
from onnxq.graph.fake_quant import DOMAIN, call, function
from onnxq.numerics.qparams import (
    FloatArray,
    bias_scale,
    fake_quant_bias,
    smallest_weight_scale,
)
from onnxq.plan.regions import root
from onnxq.plan.spec import LayerSpec, Plan, TensorSpec
from onnxq.runtime.session import Arrays
from onnxq.student.qparams import (
    QParams,
    bias_name,
    corrected_bias,
    fake_weight,
    float_feeds,
    input_scale,
    layer_scale,
    limit_feeds,
    limit_names,
    needs_bias,
    start_scale,
)

RAW = ".raw"
"""Suffix of a tensor's name before it is quantized."""
QUANTIZED = ".quantized"
"""Suffix of the quantized copy of a tensor that float nodes still read as it was."""


@dataclass(frozen=True)
class Student:
    """The student graph and what is needed to feed it.

    Attributes:
        model: the graph; inputs are the teacher's plus the parameters.
        plan: the plan that it was made from.
        sources: by integer layer, the name of the tensor whose codes it reads.
    """

    model: ir.Model
    plan: Plan
    sources: dict[str, str]

    def feeds(self, qparams: QParams, wanted: Collection[str] | None = None) -> Arrays:
        """The parameter inputs: limits, fake-quantized weights, biases.

        The biases of integer kernels are on their int32 grid.

        Args:
            qparams: the quantization parameters.
            wanted: names of the inputs to compute; None means all.
        """
        feeds = limit_feeds(self.plan, qparams)
        scales = self.weight_scales(qparams)
        for spec in self.plan.layers.values():
            names = {spec.weight, bias_name(spec)} if needs_bias(spec) else {spec.weight}
            if wanted is not None and names.isdisjoint(wanted):
                continue
            if spec.weight not in feeds:
                feeds[spec.weight] = fake_weight(spec, qparams, scales[spec.weight])
            if needs_bias(spec):
                bias = corrected_bias(spec, qparams, feeds[spec.weight])
                if spec.compute == "integer":
                    source = input_scale(self.plan, qparams, self.sources[spec.name])
                    scale = layer_scale(spec, qparams, scales[spec.weight])
                    bias = fake_quant_bias(bias, bias_scale(source, scale))
                feeds[bias_name(spec)] = bias
        feeds |= float_feeds(self.plan, qparams)
        return feeds if wanted is None else {k: v for k, v in feeds.items() if k in wanted}

    def weight_scales(self, qparams: QParams) -> dict[str, FloatArray]:
        """The scale of each weight: T / (2^(n-1) - 1), raised where a bias would leave int32.

        A codebook has a scale of its own, which is raised in the same way.
        """
        scales: dict[str, FloatArray] = {}
        for spec in self.plan.layers.values():
            scale = start_scale(spec, qparams)
            bias = qparams.biases.get(spec.name)
            if bias is not None and spec.compute == "integer":
                source = input_scale(self.plan, qparams, self.sources[spec.name])
                factor = np.abs(qparams.factors.get(spec.name, np.ones((), np.float32)))
                least = np.asarray(smallest_weight_scale(bias, source) / factor, np.float32)
                least = least.reshape(-1) if spec.axis is not None else least.max()
                scale = np.maximum(scale, least)
            scales[spec.weight] = np.maximum(scales.get(spec.weight, scale), scale)
        return scales

    def moving_inputs(self, trained: Collection[str]) -> frozenset[str]:
        """The inputs that change when the trained ones do, themselves among them.

        On integer kernels a bias is rounded on the grid of the scales of input and weight, and
        the weight's scale rises where the bias needs it.
        """
        moving = set(trained)
        integer = {
            spec: {spec.weight, *limit_names(self.plan.tensors[self.sources[spec.name]])}
            for spec in self.plan.integer_layers()
        }
        moving |= {s.weight for s, read in integer.items() if (read | {bias_name(s)}) & moving}
        moving |= {bias_name(s) for s, read in integer.items() if needs_bias(s) and read & moving}
        return frozenset(moving)

    def with_corrections_kept(self, qparams: QParams) -> QParams:
        """Parameters whose biases hold their correction: weights may now move without it."""
        scales = self.weight_scales(qparams)
        biases = {
            s.name: corrected_bias(s, qparams, fake_weight(s, qparams, scales[s.weight]))
            for s in self.plan.layers.values()
            if s.name in qparams.means
        }
        return qparams.with_biases(biases).with_means({})

    def with_weights_on_grid(self, qparams: QParams) -> QParams:
        """Parameters whose weights are what their codes stand for: the same codes, no error."""
        scales = self.weight_scales(qparams)
        coded = [spec for spec in self.plan.layers.values() if spec.codebook is None]
        weights = {s.weight: fake_weight(s, qparams, scales[s.weight]) for s in coded}
        return qparams.with_weights(weights)


def build_student(teacher: ir.Model, plan: Plan) -> Student:
    """Rewrite a copy of the teacher: one fake-quant node per tensor, parameters as inputs.

    Args:
        teacher: the normalised float model; it isn't changed.
        plan: which layers and tensors, from `make_plan`.
    """
    model = teacher.clone(deep_copy=False)
    graph = model.graph
    sources = layer_sources(graph, plan)
    values = values_by_name(graph)
    for spec in plan.tensors.values():
        _insert_fake_quant(graph, values[spec.name], spec, plan)
    for layer in (*plan.layers.values(), *plan.float_layers.values()):
        free_parameters(graph, layer)
    _add_functions(model, plan)
    graph.sort()
    return Student(model, plan, sources)


def layer_sources(graph: ir.Graph, plan: Plan) -> dict[str, str]:
    """By integer layer, the tensor whose codes it reads, before any move."""
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
    inputs = [ir.val(name, ir.DataType.FLOAT, []) for name in limit_names(spec)]
    graph.inputs.extend(inputs)
    node = call(spec.kind, spec.num_bits, source, *inputs)
    node.name = f"{spec.name}.fake_quant"
    quantized = node.outputs[0]
    quantized.type, quantized.shape = value.type, value.shape
    _move_readers(value, quantized, node, spec, plan)
    producer = source.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    if folded is not None:
        graph.remove(folded, safe=True)


def _move_readers(
    value: ir.Value, quantized: ir.Value, node: ir.Node, spec: TensorSpec, plan: Plan
) -> None:
    """Let integer readers, or all of them where integers wrote the tensor, read its codes."""
    for reader, index in list(value.uses()):
        if reader is not node and (spec.integer or _reads_codes(reader, index, plan)):
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


def _reads_codes(reader: ir.Node, index: int, plan: Plan) -> bool:
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
        fresh = _input_like(weight, str(weight.name))
        weight.replace_all_uses_with(fresh)
        del graph.initializers[str(weight.name)]
        graph.inputs.append(fresh)
    if needs_bias(spec):
        bias = node.inputs[2]
        assert bias is not None
        # One number per channel, whatever the shape that the teacher's bias spreads from.
        fresh = ir.val(bias_name(spec), ir.DataType.FLOAT, [spec.channels])
        graph.inputs.append(fresh)
        node.replace_input_with(2, fresh)
        if not bias.uses():
            del graph.initializers[str(bias.name)]


def _input_like(value: ir.Value, name: str) -> ir.Value:
    assert value.const_value is not None
    array = value.const_value
    return ir.val(name, array.dtype, array.numpy().shape)


def _add_functions(model: ir.Model, plan: Plan) -> None:
    version = model.graph.opset_imports.get("", 13)
    for kind, num_bits in sorted({(s.kind, s.num_bits) for s in plan.tensors.values()}):
        made = function(kind, num_bits, version)
        model.functions[made.identifier()] = made
    if plan.tensors:
        model.graph.opset_imports[DOMAIN] = 1


def bake(student: Student, qparams: QParams) -> ir.Model:
    """A copy of the student with its numbers as constants: the teacher's inputs and no more."""
    return with_constants(student.model, student.feeds(qparams))


def bake_between(
    student: Student, qparams: QParams, inputs: Collection[str], outputs: Sequence[str]
) -> ir.Model:
    """The part of a baked student from some of its tensors to some others.

    Only the numbers that this part reads are computed.

    Args:
        student: the student.
        qparams: its numbers.
        inputs: names of tensors that become inputs, or are.
        outputs: names of the tensors wanted; none of them among the inputs.
    """
    part = between(student.model, inputs, outputs)
    read = {str(value.name) for value in part.graph.inputs}
    fix_inputs(part.graph, student.feeds(qparams, read))
    return part


def with_constants(model: ir.Model, values: Mapping[str, np.ndarray]) -> ir.Model:
    """A copy of the model with some of its inputs as constants."""
    copy = model.clone(deep_copy=False)
    fix_inputs(copy.graph, values)
    return copy


def fix_inputs(graph: ir.Graph, values: Mapping[str, np.ndarray]) -> None:
    """Turn inputs into constants of the same names, in place."""
    for value in list(graph.inputs):
        if value.name in values:
            graph.inputs.remove(value)
            value.const_value = ir.tensor(values[str(value.name)], name=value.name)
            graph.register_initializer(value)
