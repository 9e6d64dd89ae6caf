"""Write weights and biases as integers: the only form in which the file holds them.

Layers that were left float and retrained are the exception: they are written as floats.

Integer kernels read codes through DequantizeLinear. Weight-only layers read
`Cast(codes) * scale`, which ONNX Runtime folds into a float constant at session start
(it doesn't fold DequantizeLinear). A codebook takes the place of the codes, and
codes of less than 8 bits are packed as one of all codes: see `lookup`. For accelerators that take
tensors of type INT4, codes of 4 bits or fewer are one of those.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.export.constants import CODES, SCALE, add_constant
from onnxq.export.lookup import add_lookup
from onnxq.numerics.codebook import Codebook, uniform_codebook
from onnxq.numerics.qparams import (
    FloatArray,
    bias_scale,
    per_channel,
    quantize_bias,
    quantize_weight,
)
from onnxq.plan.codebooks import codebook_bytes
from onnxq.plan.spec import LayerSpec
from onnxq.rewrite.quantizers import (
    Quantizers,
    bias_name,
    corrected_bias,
    fake_weight,
    float_feeds,
    input_scale,
    needs_bias,
    weight_scales,
)
from onnxq.rewrite.student import Student, fix_inputs

EXPAND_BYTES = 60
"""Bytes of an Expand with its constants, about."""

MOST_CENTROIDS = 256
"""An index has 8 bits at most."""

REAL = ".real"
"""Suffix of a weight or bias as the layer reads it."""


def lower_weights(model: ir.Model, student: Student, quantizers: Quantizers) -> None:
    """Replace the student's weight and bias inputs by integer constants, in place.

    Args:
        model: the lowered copy of the student.
        student: the student, for its plan and the tensors that layers read.
        quantizers: the numbers to write.
    """
    graph = model.graph
    scales = weight_scales(student.plan, quantizers, student.sources)
    inputs = {value.name: value for value in graph.inputs}
    scale_values: dict[str, ir.Value] = {}
    # Of layers that share a weight, one on an integer kernel decides its form.
    layers = sorted(student.plan.layers.values(), key=lambda spec: spec.compute != "integer")
    for spec in layers:
        if spec.weight not in scale_values:
            scale = scales[spec.weight]
            scale_values[spec.weight] = add_constant(graph, f"{spec.weight}{SCALE}", scale)
            real = _lower_weight(graph, spec, quantizers, scale, scale_values[spec.weight])
            _replace_input(graph, inputs[spec.weight], real)
        if needs_bias(spec):
            real = _lower_bias(graph, spec, student, quantizers, scales[spec.weight])
            _replace_input(graph, inputs[bias_name(spec)], real)
    fix_inputs(graph, float_feeds(student.plan, quantizers))


def _lower_weight(
    graph: ir.Graph, spec: LayerSpec, quantizers: Quantizers, scale: np.ndarray, value: ir.Value
) -> ir.Value:
    weight = quantizers.weights[spec.weight]
    dtype = ir.DataType.INT4 if spec.int4 else ir.DataType.INT8
    if spec.codebook is not None:
        stored = add_lookup(graph, spec.weight, quantizers.codebooks[spec.weight])
    else:
        codes = quantize_weight(weight, scale, spec.num_bits, spec.axis)
        if spec.packed:
            stored = add_lookup(graph, spec.weight, uniform_codebook(codes, spec.num_bits, scale))
        else:
            stored = add_constant(graph, f"{spec.weight}{CODES}", codes.astype(dtype.numpy()))
    # Cast doesn't take INT4.
    if spec.compute == "integer" or spec.int4:
        zeros = np.zeros(scale.shape, dtype.numpy())
        zero = add_constant(graph, f"{spec.weight}.zero_point", zeros)
        return _dequantize(graph, [stored, value, zero], spec.axis, spec.weight)
    if spec.codebook is not None and spec.axis is None:
        # The centroids are the weights themselves.
        del graph.initializers[str(value.name)]
        return stored
    assert value.const_value is not None
    shaped = per_channel(scale, weight.ndim, spec.axis)
    value.const_value = ir.tensor(shaped, name=value.name)
    value.shape = ir.Shape(shaped.shape)
    nodes = []
    if spec.codebook is None:
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}, name=f"{spec.weight}.cast")
        cast.outputs[0].name = f"{spec.weight}.unscaled"
        nodes, stored = [cast], cast.outputs[0]
    product = ir.node("Mul", [stored, value], name=f"{spec.weight}.rescale")
    graph.insert_before(graph[0], [*nodes, product])
    return product.outputs[0]


def _lower_bias(
    graph: ir.Graph, spec: LayerSpec, student: Student, quantizers: Quantizers, scale: FloatArray
) -> ir.Value:
    name = bias_name(spec)
    bias = corrected_bias(spec, quantizers, fake_weight(spec, quantizers, scale))
    if spec.compute == "weight-only":
        return _real_bias(graph, name, bias)
    source = student.sources[spec.name]
    grid = bias_scale(input_scale(student.plan, quantizers, source), scale)
    codes = quantize_bias(bias, grid)
    stored = add_constant(graph, f"{name}{CODES}", codes.reshape(-1))
    axis = 0 if spec.axis is not None else None
    return _dequantize(graph, [stored, _bias_scale(graph, spec, source)], axis, name)


def _bias_scale(graph: ir.Graph, spec: LayerSpec, source: str) -> ir.Value:
    """s_in * s_w, computed when a session starts: a node is smaller than a number per channel."""
    scales = [graph.initializers[f"{name}{SCALE}"] for name in (source, spec.weight)]
    node = ir.node("Mul", scales, name=f"{bias_name(spec)}.rescale")
    node.outputs[0].name = f"{bias_name(spec)}{SCALE}"
    graph.insert_before(graph[0], node)
    return node.outputs[0]


def _real_bias(graph: ir.Graph, name: str, bias: FloatArray) -> ir.Value:
    """A float bias, in whichever form takes the fewest bytes; all fold when a session starts."""
    values, indices = np.unique(bias, return_inverse=True)
    if values.size == 1 and bias.nbytes > EXPAND_BYTES:
        value = add_constant(graph, f"{name}.value", values)
        shape = add_constant(graph, f"{name}.shape", np.array(bias.shape, np.int64))
        node = ir.node("Expand", [value, shape], name=f"{name}.expand")
        graph.insert_before(graph[0], node)
        return node.outputs[0]
    shared = 1 < values.size <= MOST_CENTROIDS
    if shared and codebook_bytes(bias.size, values.size, integer=False) < bias.nbytes:
        codes = np.asarray(indices.reshape(bias.shape), np.uint8)
        return add_lookup(graph, name, Codebook(values, codes, np.ones((), np.float32)))
    return add_constant(graph, f"{name}{REAL}", bias)


def _dequantize(graph: ir.Graph, inputs: list[ir.Value], axis: int | None, name: str) -> ir.Value:
    attributes = {} if axis is None else {"axis": axis}
    node = ir.node("DequantizeLinear", inputs, attributes, name=f"{name}.dq")
    graph.insert_before(graph[0], node)
    return node.outputs[0]


def _replace_input(graph: ir.Graph, value: ir.Value, real: ir.Value) -> None:
    real.name = f"{value.name}{REAL}"
    real.type, real.shape = value.type, value.shape
    value.replace_all_uses_with(real)
    graph.inputs.remove(value)
