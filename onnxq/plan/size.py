"""How many bytes a plan takes from the file, known before anything is run.

A small model is mostly nodes: a quantized tensor needs two of them with a scale and a zero point, a
quantized weight one, an integer bias two. Their bytes are those of protobuf, with the short names
that the file has.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import onnx_ir as ir

from onnxq.plan.codebooks import SCALE_BYTES, weight_bytes
from onnxq.plan.spec import CODE_BITS, LayerSpec, Plan

TENSOR_BYTES, DIMENSION_BYTES = 12, 2
"""Bytes of a stored tensor beside its elements: of itself, and for each dimension."""

DEQUANTIZE_BYTES, CAST_BYTES, MUL_BYTES, CLIP_BYTES = 45, 27, 18, 28
"""Bytes of a node with names of one letter."""

QUANTIZED_TENSOR_BYTES = 30 + 32 + (TENSOR_BYTES + SCALE_BYTES) + (TENSOR_BYTES + 1)
"""QuantizeLinear, DequantizeLinear, scale and zero point of an activation tensor."""


def saved_bytes(graph: ir.Graph, plan: Plan, halved: Collection[str] = ()) -> int:
    """The bytes by which the file of a plan is smaller than its float form, about.

    Args:
        graph: the normalised float model's.
        plan: of its layers and tensors; a weight that several layers read counts once.
        halved: names of the constants that the float form holds in 16 bits.

    Returns:
        A negative number where the file of the plan is larger.
    """
    nodes = {str(node.name): node for node in graph}
    weights: dict[str, list[LayerSpec]] = {}
    for spec in plan.layers.values():
        weights.setdefault(spec.weight, []).append(spec)
    saved = sum(_saved_by_weight(graph, group, halved) for group in weights.values())
    saved += sum(_saved_by_bias(nodes, spec, halved) for spec in plan.layers.values())
    for tensor in plan.tensors.values():
        saved -= QUANTIZED_TENSOR_BYTES + (CLIP_BYTES if tensor.num_bits < CODE_BITS else 0)
        if tensor.folded is not None:
            saved += _node_bytes(nodes[tensor.folded])
    return saved


def weight_saving(
    graph: ir.Graph, readers: Iterable[LayerSpec], halved: Collection[str] = ()
) -> int:
    """The bytes that one stored weight saves with its biases, before any activation is counted."""
    nodes = {str(node.name): node for node in graph}
    group = list(readers)
    by_biases = sum(_saved_by_bias(nodes, spec, halved) for spec in group)
    return _saved_by_weight(graph, group, halved) + by_biases


def _saved_by_weight(graph: ir.Graph, group: list[LayerSpec], halved: Collection[str]) -> int:
    """Of one stored weight: floats and their name, less codes, scales and the nodes that read."""
    spec = min(group, key=lambda each: each.compute != "integer")
    value = graph.initializers[spec.weight]
    rank = len(value.shape or ())
    integer = spec.compute == "integer" or spec.int4
    header = TENSOR_BYTES + DIMENSION_BYTES * rank
    before = _float_bytes(spec.weight, spec.parameters, halved) + header + _name_bytes(value)
    if not integer:
        cast = CAST_BYTES if spec.codebook is None else 0
        return before - weight_bytes(spec, integer=False) - 2 * header - cast - MUL_BYTES
    vectors = 2 * (TENSOR_BYTES + (DIMENSION_BYTES if spec.axis is not None else 0))
    return before - _stored_bytes(spec) - header - vectors - DEQUANTIZE_BYTES


def _stored_bytes(spec: LayerSpec) -> int:
    """Codes, scales and zero points under DequantizeLinear."""
    if not spec.int4:
        return weight_bytes(spec, integer=True)
    scales = 1 if spec.axis is None else spec.channels
    return math.ceil(spec.parameters / 2) + scales * SCALE_BYTES + math.ceil(scales / 2)


def _saved_by_bias(nodes: dict[str, ir.Node], spec: LayerSpec, halved: Collection[str]) -> int:
    """An integer bias has as many bytes as a float32 one, and two nodes for its scale."""
    if spec.bias is None:
        return 0
    value = next(v for v in nodes[spec.name].inputs if v is not None and v.name == spec.bias)
    named = _name_bytes(value)
    named -= 4 * spec.channels - _float_bytes(spec.bias, spec.channels, halved)
    return named if spec.compute == "weight-only" else named - DEQUANTIZE_BYTES - MUL_BYTES


def _float_bytes(name: str, elements: int, halved: Collection[str]) -> int:
    """A constant in float32, or in 16 bits under a Cast."""
    return 2 * elements + CAST_BYTES if name in halved else 4 * elements


def _name_bytes(value: ir.Value) -> int:
    """What a constant's name takes beyond a letter, where it is stored and wherever it is read."""
    return (len(str(value.name)) - 1) * (1 + len(value.uses()))


def _node_bytes(node: ir.Node) -> int:
    """A node without attributes: each of its names has two bytes more."""
    names = [node.op_type, node.name or "", *(v.name or "" for v in node.inputs if v is not None)]
    names += [str(value.name) for value in node.outputs]
    return 2 + sum(2 + len(name) for name in names)
