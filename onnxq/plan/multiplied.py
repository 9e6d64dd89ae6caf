"""The tensors that weights are multiplied with: what the width of activations is about.

A product costs by the widths of its two factors. What is only added, joined or pooled costs the
same in 8 bits on every target, and is no cheaper in memory there: networks of few bits are stated
so in the literature (LSQ, Esser et al. 2020: "activations input to each layer").
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxq.plan.layers import Layer
from onnxq.plan.regions import root


def multiplied_tensors(layers: Sequence[Layer]) -> frozenset[str]:
    """The names of the tensors that layers read, before any move."""
    return frozenset(str(root(layer.data).name) for layer in layers)


def wide_tensors(layers: Sequence[Layer]) -> frozenset[str]:
    """Those that the first and the last layer read."""
    return multiplied_tensors([*layers[:1], *layers[-1:]])
