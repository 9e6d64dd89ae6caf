"""Which weights are smaller as integers, their nodes and those of activations counted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import onnx_ir as ir

from onnxq.plan.layers import Layer
from onnxq.plan.size import QUANTIZED_TENSOR_BYTES, saved_bytes, weight_saving
from onnxq.plan.spec import LayerSpec, Plan

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

    Weights are looked at one by one, those that save least first: each with all layers that read
    it, and with the activations that no other layer needs. One that other layers need for their
    integer kernels stays, as long as the file gets smaller all the same.

    Args:
        graph: the normalised float model's.
        layers: those that may be quantized.
        plan_of: the plan where these layers are quantized, and no others.
        wanted: nodes of layers that are quantized whatever their size.
        halved: names of the constants that stay in 16 bits where they stay float.
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
    """Whether layers of other weights lose their integer kernels with those of the group."""
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
    """The layers by stored weight, of those weights whose saving activations may use up."""
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
