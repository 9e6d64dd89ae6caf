"""Pairs of layers between which channels can be rescaled.

A pair is Conv or Gemm → nodes that treat each channel by itself and have f(sx) = s·f(x) for s > 0 →
Conv or Gemm. Clip(0, 6) has that property only below its upper bound; see `equalize`. Layers in
sub-graphs are left out.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.graph.facts import DEFAULT_DOMAINS, input_at, scalar
from onnxq.student.weights import (
    LAYER_TYPES,
    in_features,
    out_channels,
    weight_refusal,
)

logger = logging.getLogger(__name__)

_HOMOGENEOUS = frozenset(
    ("Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
)
_FLATTENING = frozenset(("Flatten", "Reshape"))


@dataclass(frozen=True)
class Pair:
    """Two layers and the activation between them.

    Attributes:
        producer: the Conv or Gemm that writes the channels.
        consumer: the Conv or Gemm that reads them.
        channels: their number.
        clip: the Clip(0, bound) between them, or None.
        bound: its upper bound; infinity where there is none.
        tensor: the tensor whose largest values matter: the output of the Clip, or else of the last
            activation function between the layers (of the producer where there is none).
    """

    producer: ir.Node
    consumer: ir.Node
    channels: int
    clip: ir.Node | None
    bound: float
    tensor: str


def find_pairs(model: ir.Model) -> list[Pair]:
    """All pairs of the main graph in the order of the data flow; rejected ones are logged."""
    pairs = []
    for node in model.graph:
        if node.domain in DEFAULT_DOMAINS and node.op_type in LAYER_TYPES:
            found = _pair_from(node)
            if isinstance(found, Pair):
                pairs.append(found)
            else:
                logger.debug("no pair starts at '%s': %s", node.name, found)
    return pairs


def _pair_from(producer: ir.Node) -> Pair | str:
    """The pair that starts at a layer, or the reason why there is none."""
    refusal = weight_refusal(producer)
    if refusal:
        return refusal
    between: list[ir.Node] = []
    value = producer.outputs[0]
    while True:
        if value.is_graph_output() or len(value.uses()) != 1:
            return f"'{value.name}' is an output or not read exactly once"
        node, index = next(iter(value.uses()))
        if node.graph is not value.graph:
            return f"'{value.name}' is read inside a sub-graph"
        if index != 0:
            return f"'{value.name}' is not the data input of '{node.name}'"
        if node.op_type in LAYER_TYPES:
            return _checked(producer, node, between)
        refusal = _between_refusal(node)
        if refusal:
            return refusal
        between.append(node)
        value = node.outputs[0]


def _checked(producer: ir.Node, consumer: ir.Node, between: list[ir.Node]) -> Pair | str:
    refusal = weight_refusal(consumer)
    if refusal:
        return refusal
    channels, features = out_channels(producer), in_features(consumer)
    flattened = any(node.op_type in _FLATTENING for node in between)
    if features != channels and not (flattened and features % channels == 0):
        return f"'{consumer.name}' reads '{features}' features of '{channels}' channels"
    clips = [node for node in between if node.op_type == "Clip"]
    if len(clips) > 1:
        return f"more than one Clip lies before '{consumer.name}'"
    clip = clips[0] if clips else None
    bound = scalar(input_at(clip, 2), math.inf) if clip else None
    return Pair(
        producer=producer,
        consumer=consumer,
        channels=channels,
        clip=clip,
        bound=math.inf if bound is None else bound,
        tensor=_watched_tensor(producer, between),
    )


def _watched_tensor(producer: ir.Node, between: list[ir.Node]) -> str:
    value = producer.outputs[0]
    for node in between:
        if node.op_type in ("Relu", "LeakyRelu", "PRelu", "Clip"):
            value = node.outputs[0]
    return str(value.name)


def _between_refusal(node: ir.Node) -> str | None:
    """Why channels can't be rescaled across a node; None where they can."""
    if len([output for output in node.outputs if output.uses() or output.is_graph_output()]) > 1:
        return f"'{node.name}' has more than one output"
    if node.op_type in _HOMOGENEOUS:
        return _slope_refusal(node) if node.op_type == "PRelu" else None
    if node.op_type == "Clip":
        low, high = scalar(input_at(node, 1), -math.inf), scalar(input_at(node, 2), math.inf)
        fits = low == 0.0 and high is not None and high > 0.0
        return None if fits else f"'{node.name}' is not a Clip from 0 to a constant"
    if node.op_type == "Flatten" and node.attributes.get_int("axis", 1) == 1:
        return None
    if node.op_type == "Reshape" and _flattens(node):
        return None
    return f"'{node.name}' of type '{node.op_type}' lies in the way"


def _slope_refusal(node: ir.Node) -> str | None:
    slope = node.inputs[1]
    constant = slope is not None and slope.const_value is not None
    return None if constant else f"the slope of '{node.name}' is not constant"


def _flattens(node: ir.Node) -> bool:
    """Whether a Reshape turns (batch, channels, ...) into (batch, features)."""
    source, target = node.inputs[0], node.inputs[1]
    if target is None or target.const_value is None:
        return False
    numbers = target.const_value.numpy().tolist()
    if len(numbers) != 2 or numbers == [-1, 0]:
        return False
    if numbers[0] == 0:
        return True
    dims = list(source.shape) if source is not None and source.shape is not None else []
    if numbers[1] == -1:
        return bool(dims[:1] == numbers[:1])
    features = [dim for dim in dims[1:] if isinstance(dim, int)]
    return len(features) == len(dims) - 1 and math.prod(features) == int(numbers[1])
