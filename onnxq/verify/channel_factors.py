"""The factors by which equalization scaled the channels of a file, found from its weights.

Equalized layers hold W'[o, i] = W[o, i] · a_o / a_i, where a_o is the factor of output channel o,
and a_i that of the channel that they read (`onnxq/forms/equalize.py`). The file doesn't hold the
factors. Layers are visited in the order of the data flow, so a_i is known, and least squares over
the weights of a channel give

    a_o = sum_i W'[o, i] V[o, i] / sum_i V[o, i]^2,   V[o, i] = W[o, i] / a_i

A channel without weights takes the ratio of its biases. Quantization noise of a channel as a whole
is counted in its factor: one part in n of the noise of n weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.forms.equalize import find_pairs
from onnxq.graph.facts import constant
from onnxq.numerics.equalization import scale_input, scale_output
from onnxq.student.weights import (
    in_features,
    join_weight,
    read_weight,
    split_weight,
)

Floats = NDArray[np.float64]

DEAD = 1e-12
"""Sum of squares, as a share of the layer's mean one, below which a channel has no weights."""


@dataclass(frozen=True)
class Rescaled:
    """A layer of the original, rescaled to the channels of the file.

    Attributes:
        weight: the original's weights, rescaled. Behind a channel that is always zero the
            original's weights are often the largest of all, and only rescaled ones can be compared.
        factor: ``(channels,)`` by which the layer's output is rescaled; None where it isn't.
    """

    weight: np.ndarray
    factor: Floats | None = None


class ChannelFactors:
    """Repeats an equalization, layer by layer in the order of the data flow.

    Args:
        teacher: the normalised float model.
    """

    def __init__(self, teacher: ir.Model) -> None:
        pairs = find_pairs(teacher)
        self._given = {pair.producer: pair for pair in pairs}
        self._taken = {pair.consumer: pair for pair in pairs}
        self._factors: dict[ir.Node, Floats] = {}

    def rescale(
        self, layer: ir.Node, weight: NDArray[np.floating], bias: NDArray[np.floating] | None
    ) -> Rescaled:
        """Rescale a layer of the original like the file's.

        Args:
            layer: the teacher's node.
            weight: the file's weights of the layer, of the same shape.
            bias: the file's bias of the layer, or None.
        """
        given, taken = self._given.get(layer), self._taken.get(layer)
        if given is None and taken is None:
            original = constant(layer.inputs[1])
            assert original is not None
            return Rescaled(original)
        channels = in_features(layer) if taken is None else taken.channels
        wanted, factor = read_weight(layer, channels), None
        if taken is not None:
            wanted = scale_input(wanted, 1 / self._factors[taken.producer])
        if given is not None:
            found = split_weight(layer, weight, channels)
            factor = _factor(wanted, found, _bias_ratio(layer, bias, given.channels))
            wanted = scale_output(wanted, factor)
            self._factors[layer] = factor
        return Rescaled(join_weight(layer, wanted), factor)


def _factor(original: Floats, found: Floats, fallback: Floats) -> Floats:
    """Least squares per output channel, ``(groups * out,)``."""
    groups, out = original.shape[:2]
    rows, others = (each.reshape(groups * out, -1) for each in (original, found))
    power = np.square(rows).sum(axis=1)
    product = (rows * others).sum(axis=1)
    alive = (power > DEAD * power.mean()) & (product > 0)
    return np.where(alive, product / np.where(alive, power, 1.0), fallback)


def _bias_ratio(layer: ir.Node, bias: np.ndarray | None, channels: int) -> Floats:
    """The file's bias over the original's, ``(channels,)``; 1 where that is 0 or negative."""
    original = constant(layer.inputs[2]) if len(layer.inputs) > 2 else None
    if original is None or bias is None:
        return np.ones(channels)
    before, after = (
        np.broadcast_to(each.astype(np.float64).reshape(-1), (channels,))
        for each in (original, bias)
    )
    known = before * after > 0
    return np.where(known, after / np.where(known, before, 1.0), 1.0)
