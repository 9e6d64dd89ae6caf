"""The first and the last layer, whose weights and inputs few bits hurt most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxq.plan.layers import Layer
from onnxq.plan.operators import TABLE
from onnxq.recipe import Recipe

WIDE_ENOUGH = 6
"""So many bits serve the first and the last layer too, where the recipe says nothing."""

WIDE = 8
"""Bits that they get otherwise."""


def first_and_last(layers: Sequence[Layer]) -> frozenset[ir.Node]:
    """The nodes of the first and the last layer in graph order, whether float or not.

    A table's lookup multiplies nothing and is neither.
    """
    multiply = [layer for layer in layers if layer.node.op_type != TABLE]
    return frozenset(layer.node for layer in (*multiply[:1], *multiply[-1:]))


def for_first_and_last(recipe: Recipe) -> Recipe:
    """The recipe as these two layers read it: its widths are those of their weights and inputs.

    What the recipe states for single layers goes before.
    """
    stated = recipe.first_last_bits
    weight_bits = _wide(recipe.weight_bits) if stated is None else stated
    bits = recipe.activation_bits
    if bits is not None:
        bits = _wide(bits) if stated is None else max(bits, stated)
    return replace(recipe, weight_bits=weight_bits, activation_bits=bits)


def _wide(num_bits: int) -> int:
    return num_bits if num_bits >= WIDE_ENOUGH else WIDE
