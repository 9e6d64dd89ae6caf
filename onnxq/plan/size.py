"""The bytes of a plan, and the layers whose integer form would not be smaller."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence

import onnx_ir as ir

from onnxq.plan.layers import Layer
from onnxq.plan.spec import BYTE_BITS, SCALE_BYTES, LayerSpec, Plan, weight_bytes

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
        halved: names of the constants that the float form stores in 16 bits.

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
        saved -= QUANTIZED_TENSOR_BYTES + (CLIP_BYTES if tensor.num_bits < BYTE_BITS else 0)
        if tensor.folded is not None:
            saved += _node_bytes(nodes[tensor.folded])
    return saved


def weight_saving(
    graph: ir.Graph, readers: Iterable[LayerSpec], halved: Collection[str] = ()
) -> int:
    """The bytes that one stored weight saves together with its biases, without activations."""
    nodes = {str(node.name): node for node in graph}
    group = list(readers)
    by_biases = sum(_saved_by_bias(nodes, spec, halved) for spec in group)
    return _saved_by_weight(graph, group, halved) + by_biases


def _saved_by_weight(graph: ir.Graph, group: list[LayerSpec], halved: Collection[str]) -> int:
    """The bytes saved by one weight: its floats and their name, less integers, scales and nodes."""
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
    """Bytes of integers, scales and zero points under a DequantizeLinear."""
    if not spec.int4:
        return weight_bytes(spec, integer=True)
    scales = 1 if spec.axis is None else spec.channels
    return math.ceil(spec.parameters / 2) + scales * SCALE_BYTES + math.ceil(scales / 2)


def _saved_by_bias(nodes: dict[str, ir.Node], spec: LayerSpec, halved: Collection[str]) -> int:
    """Bytes saved by a bias: int32 is as large as float32, and its scale takes two nodes."""
    if spec.bias is None:
        return 0
    value = next(v for v in nodes[spec.name].inputs if v is not None and v.name == spec.bias)
    named = _name_bytes(value)
    named -= 4 * spec.channels - _float_bytes(spec.bias, spec.channels, halved)
    return named if spec.compute == "weight-only" else named - DEQUANTIZE_BYTES - MUL_BYTES


def _float_bytes(name: str, elements: int, halved: Collection[str]) -> int:
    """Bytes of a constant in float32, or in 16 bits under a Cast."""
    return 2 * elements + CAST_BYTES if name in halved else 4 * elements


def _name_bytes(value: ir.Value) -> int:
    """Bytes of a constant's name beyond a letter, where it is stored and wherever it is read."""
    return (len(str(value.name)) - 1) * (1 + len(value.uses()))


def _node_bytes(node: ir.Node) -> int:
    """Bytes of a node without attributes; each of its names takes two bytes more."""
    names = [node.op_type, node.name or "", *(v.name or "" for v in node.inputs if v is not None)]
    names += [str(value.name) for value in node.outputs]
    return 2 + sum(2 + len(name) for name in names)


MOST_TENSORS = 4
"""Activation tensors that a layer may need for itself: what it saves beyond them is a gain."""

Planner = Callable[[Sequence[Layer]], Plan]


def growing_layers(
    graph: ir.Graph,
    layers: Sequence[Layer],
    plan_of: Planner,
    wanted: Collection[ir.Node],
    halved: Collection[str] = (),
) -> dict[str, str]:
    """Names of the layers that would make the file larger as integers, with the reason.

    Weights are visited one by one, those that save least first: each with all layers that read it,
    and with the activations that no other layer needs. A weight that others need for their integer
    kernels stays quantized, as long as the file gets smaller all the same.

    Args:
        graph: the normalised float model's.
        layers: those that may be quantized.
        plan_of: the plan where these layers are quantized, and no others.
        wanted: nodes of layers that are quantized whatever their size.
        halved: names of the constants that are stored in 16 bits where they stay float.
    """
    kept, reasons = list(layers), dict[str, str]()
    plan = plan_of(kept)
    saved = saved_bytes(graph, plan, halved)
    for group in _smallest_first(graph, layers, plan, wanted, halved):
        others = [layer for layer in kept if layer not in group]
        without = plan_of(others)
        more = saved_bytes(graph, without, halved) - saved
        needed = saved > 0 and _takes_kernels(plan, without, group)
        if more >= 0 and not needed:
            reasons |= {str(each.node.name): _reason(group[0], -more, halved) for each in group}
            kept, plan, saved = others, without, saved + more
    if kept and saved <= 0 and not any(layer.node in wanted for layer in kept):
        # Each is smaller beside the others, whose activations it shares, and all together are not.
        reasons |= {str(layer.node.name): _reason_of_all(saved) for layer in kept}
    return reasons


def _takes_kernels(plan: Plan, without: Plan, group: Sequence[Layer]) -> bool:
    """Whether layers of other weights would lose their integer kernels with this group."""
    own = {str(layer.node.name) for layer in group}
    before = {spec.name for spec in plan.integer_layers()} - own
    return not before <= {spec.name for spec in without.integer_layers()}


def _smallest_first(
    graph: ir.Graph,
    layers: Sequence[Layer],
    plan: Plan,
    wanted: Collection[ir.Node],
    halved: Collection[str],
) -> list[list[Layer]]:
    """The layers by stored weight, of those weights whose saving the activations may exceed."""
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(str(layer.weight.name), []).append(layer)
    found = []
    for group in groups.values():
        saving = weight_saving(graph, [_spec(plan, layer) for layer in group], halved)
        limit = len(group) * MOST_TENSORS * QUANTIZED_TENSOR_BYTES
        if saving <= limit and not any(layer.node in wanted for layer in group):
            found.append((saving, group))
    return [group for _, group in sorted(found, key=lambda each: each[0])]


def _spec(plan: Plan, layer: Layer) -> LayerSpec:
    return plan.layers[str(layer.node.name)]


def _reason(layer: Layer, saving: int, halved: Collection[str]) -> str:
    constant = layer.weight.const_value
    assert constant is not None
    size = constant.nbytes // 2 if layer.weight.name in halved else constant.nbytes
    return (
        f"as integers, with their scales and nodes, its weights take {size - saving:,} "
        f"bytes, not {size:,}"
    )


def _reason_of_all(saved: int) -> str:
    return (
        f"as integers, all layers together take {-saved:,} more bytes with their scales and nodes"
    )
