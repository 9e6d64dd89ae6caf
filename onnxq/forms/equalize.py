"""Cross-layer equalization of the normalised model.

Per-tensor scales are too coarse for channels of small range. Rescaling channels from layer to layer
equalizes the ranges without changing the function (numerics/equalization.py).

ReLU6, Clip(0, 6), breaks f(sx) = s·f(x) at its upper bound. There are two ways around that:

- "safe" scales only channels whose calibrated maximum never reaches the bound, and never so far
  that the scaled maximum comes near it.
- "replace" turns the Clip into Relu and scales every channel. The function changes where the bound
  was reached, so the caller has to compare both forms on held-out samples.

Where a calibrated maximum is known, no channel is scaled beyond the largest maximum of its tensor.
Otherwise a channel of tiny weights with a large bias would widen the range of the activations.
Layers in sub-graphs are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.forms.equalization_pairs import Pair, find_pairs
from onnxq.numerics.equalization import (
    Link,
    equalization_scales,
    scale_input,
    scale_output,
)
from onnxq.student.weights import in_features, read_weight, scale_bias, write_weight

__all__ = ["HEADROOM", "Pair", "equalize", "find_pairs"]

HEADROOM = 0.9
"""The share of ReLU6's bound that a scaled channel may reach on the calibration samples."""

Floats = NDArray[np.float64]


def equalize(
    model: ir.Model,
    channel_maximum: Mapping[str, NDArray[np.floating]],
    relu6: Literal["safe", "replace"],
) -> ir.Model:
    """A copy of the model with equalized weights and the same tensor names.

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
    for pair in pairs:
        write_weight(pair.producer, weights[_key(pair.producer)])
        write_weight(pair.consumer, weights[_key(pair.consumer)])
        if relu6 == "replace" and pair.clip is not None:
            _replace_clip(model.graph, pair.clip)
    return model


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


def _replace_clip(graph: ir.Graph, clip: ir.Node) -> None:
    """Replaces a Clip by Relu; the name of its output stays."""
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
