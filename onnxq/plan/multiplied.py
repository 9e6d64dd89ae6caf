"""The tensors that weights are multiplied with: what the width of activations is about.

A product costs by the widths of its two factors. What is only added, joined or pooled costs the
same in 8 bits on every target, and is no cheaper in memory there: networks of few bits are stated
so in the literature (LSQ, Esser et al. 2020: "activations input to each layer").
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxq.plan.first_last import first_and_last
from onnxq.plan.layers import Layer
from onnxq.plan.operators import TABLE
from onnxq.plan.regions import root


def multiplied_tensors(layers: Sequence[Layer]) -> frozenset[str]:
    """The names of the tensors that layers read, before any move."""
    return frozenset(str(root(each.data).name) for each in layers if each.node.op_type != TABLE)


def wide_tensors(layers: Sequence[Layer]) -> frozenset[str]:
    """Those that the first and the last layer read."""
    ends = first_and_last(layers)
    return multiplied_tensors([layer for layer in layers if layer.node in ends])
