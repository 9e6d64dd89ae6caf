"""Write weights and biases as integers, without a float copy.

Layers that were left float and retrained are the exception: they are written as floats.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.export.constants import INTEGERS, SCALE
from onnxq.export.lookup import add_lookup
from onnxq.export.stored_weight import REAL, StoredWeight, dequantize, replace_input
from onnxq.graph.editor import add_initializer, fix_inputs
from onnxq.numerics.codebook import Codebook
from onnxq.numerics.qparams import FloatArray, quantize_bias
from onnxq.plan.spec import LayerSpec, codebook_bytes
from onnxq.student.qparams import (
    QParams,
    bias_name,
    corrected_bias,
    fake_weight,
    needs_bias,
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
