"""Cross-layer equalization of the normalised model.

Per-tensor scales are too coarse for channels of small range. Rescaling channels from layer to layer
equalizes the ranges without changing the function (numerics/corrections.py).

ReLU6, Clip(0, 6), breaks f(sx) = s·f(x) at its upper bound. There are two ways around that:

- "safe" scales only channels whose calibrated maximum never reaches the bound, and never so far
  that the scaled maximum comes near it.
- "replace" turns the Clip into Relu and scales every channel. The function changes where the bound
  was reached, so the caller has to compare both forms on held-out samples.

Where a calibrated maximum is known, no channel is scaled beyond the largest maximum of its tensor.
Otherwise a channel of tiny weights with a large bias would widen the range of the activations.

A pair of layers is Conv or Gemm → nodes that treat each channel by itself and have f(sx) = s·f(x)
for s > 0 → Conv or Gemm. Layers in sub-graphs are left out.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.calibrate.calibrator import TensorStatistics
from onnxq.graph.cut import dependents
from onnxq.graph.facts import DEFAULT_DOMAINS, input_at, scalar
from onnxq.numerics.corrections import (
    Link,
    equalization_scales,
    scale_input,
    scale_output,
)
from onnxq.student.weights import (
    LAYER_TYPES,
    in_features,
    out_channels,
    read_weight,
    scale_bias,
    weight_refusal,
    write_weight,
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
        between: names of all tensors between the layers.
    """

    producer: ir.Node
    consumer: ir.Node
    channels: int
    clip: ir.Node | None
    bound: float
    tensor: str
    between: tuple[str, ...] = ()


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
        between=tuple(str(node.outputs[0].name) for node in (producer, *between)),
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


__all__ = ["HEADROOM", "EqualForm", "Pair", "equalize", "find_pairs"]

HEADROOM = 0.9
"""The share of ReLU6's bound that a scaled channel may reach on the calibration samples."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class EqualForm:
    """An equalized model, and what its tensors are beside those of the original.

    Attributes:
        model: the copy with equalized weights and the same tensor names.
        factors: of the channels of each rescaled tensor, float64 ``(channels,)`` by tensor name.
        changed: names of the tensors that a removed bound may change, for which no factor holds.
    """

    model: ir.Model
    factors: Mapping[str, Floats] = field(default_factory=dict)
    changed: frozenset[str] = frozenset()

    def derived(self, statistics: Mapping[str, TensorStatistics]) -> dict[str, TensorStatistics]:
        """The statistics of the form's tensors as far as they follow from the original's."""
        found = {
            name: known.scaled(self.factors[name]) if name in self.factors else known
            for name, known in statistics.items()
            if name not in self.changed
        }
        return {name: each for name, each in found.items() if each is not None}


def equalize(
    model: ir.Model,
    channel_maximum: Mapping[str, NDArray[np.floating]],
    relu6: Literal["safe", "replace"],
) -> EqualForm:
    """The equalized form of a model.

    Args:
        model: normalised; not changed.
        channel_maximum: the calibrated maximum (largest magnitude, for signed tensors) of each
            channel, ``(channels,)``, by tensor name (`Pair.tensor`). In the mode "safe", a pair
            with a bounded Clip that is missing here is not equalized.
        relu6: how a Clip(0, bound) is handled.
    """
    model = model.clone()
    pairs = [
        pair
        for pair in find_pairs(model)
        if relu6 == "replace" or not np.isfinite(pair.bound) or pair.tensor in channel_maximum
    ]
    weights = _read_weights(pairs)
    scales = equalization_scales(
        {name: np.abs(weight).max(axis=3) for name, weight in weights.items()},
        [_link(pair, channel_maximum.get(pair.tensor), relu6) for pair in pairs],
    )
    for pair, scale in zip(pairs, scales, strict=True):
        _apply(pair, scale, weights)
    unbounded = list[ir.Value]()
    for pair in pairs:
        write_weight(pair.producer, weights[_key(pair.producer)])
        write_weight(pair.consumer, weights[_key(pair.consumer)])
        if relu6 == "replace" and pair.clip is not None:
            relu = _replace_clip(model.graph, pair.clip)
            if _reaches(pair, channel_maximum.get(pair.tensor)):
                unbounded.append(relu)
    factors = {
        name: 1 / scale for pair, scale in zip(pairs, scales, strict=True) for name in pair.between
    }
    changed = frozenset(str(value.name) for value in dependents(model.graph, unbounded))
    return EqualForm(model, factors, changed)


def _reaches(pair: Pair, maximum: NDArray[np.floating] | None) -> bool:
    """Whether some channel comes to the bound of the pair's Clip, as far as is known."""
    return maximum is None or bool(np.any(maximum >= pair.bound))


def _key(node: ir.Node) -> str:
    """The name of a layer's weight, which no other layer reads, so that it identifies the layer."""
    assert node.inputs[1] is not None
    return str(node.inputs[1].name)


def _read_weights(pairs: list[Pair]) -> dict[str, Floats]:
    """The weights of every layer in a pair, split by the channels that it reads."""
    taken = {_key(pair.consumer): pair.channels for pair in pairs}
    layers = [layer for pair in pairs for layer in (pair.producer, pair.consumer)]
    return {
        _key(layer): read_weight(layer, taken.get(_key(layer), in_features(layer)))
        for layer in layers
    }


def _link(
    pair: Pair, maximum: NDArray[np.floating] | None, relu6: Literal["safe", "replace"]
) -> Link:
    """The pair with the bounds of its scales, from the calibrated maximum."""
    producer, consumer = _key(pair.producer), _key(pair.consumer)
    if maximum is None:
        return Link(producer, consumer)
    reached = np.maximum(maximum.astype(np.float64), 0.0)
    bounded = relu6 == "safe" and np.isfinite(pair.bound)
    largest = float(reached.max(initial=0.0))
    if bounded:
        largest = min(largest, HEADROOM * pair.bound)
    floor = np.minimum(reached / largest, 1.0) if largest > 0 else None
    fixed = reached >= pair.bound if bounded else None
    return Link(producer, consumer, floor, fixed)


def _apply(pair: Pair, scale: Floats, weights: dict[str, Floats]) -> None:
    producer, consumer = _key(pair.producer), _key(pair.consumer)
    weights[producer] = scale_output(weights[producer], 1 / scale)
    scale_bias(pair.producer, 1 / scale)
    weights[consumer] = scale_input(weights[consumer], scale)


def _replace_clip(graph: ir.Graph, clip: ir.Node) -> ir.Value:
    """Replaces a Clip by Relu, whose output it returns; the output's name stays."""
    old = clip.outputs[0]
    relu = ir.node("Relu", [clip.inputs[0]], name=clip.name)
    new = relu.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    graph.insert_before(clip, relu)
    old.replace_all_uses_with(new)
    bounds = [value for value in clip.inputs[1:] if value is not None]
    graph.remove(clip, safe=True)
    for value in bounds:
        if not value.uses() and value.is_initializer() and value.name in graph.initializers:
            del graph.initializers[str(value.name)]
    return new
