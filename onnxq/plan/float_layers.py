"""Layers with settings of their own: those that stay float, and the first and last layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxq.errors import RecipeError
from onnxq.graph.operators import TABLE
from onnxq.options.recipe import Recipe
from onnxq.plan.layers import Layer, spec_of
from onnxq.plan.spec import LayerSpec, Plan

EXCLUDED = "it is excluded by the recipe"
RETRAINED = f"{EXCLUDED}; retrained"
FLOAT_BITS = 32


def retrained_layers(excluded: Sequence[Layer], quantized: Sequence[Layer]) -> dict[str, LayerSpec]:
    """Specs of the layers to retrain: float layers whose weight no quantized layer shares."""
    taken = {layer.weight.name for layer in quantized}
    return {
        str(layer.node.name): _spec(layer) for layer in excluded if layer.weight.name not in taken
    }


def _spec(layer: Layer) -> LayerSpec:
    return replace(spec_of(layer, None, FLOAT_BITS, "float"), reason=RETRAINED)


def check_float_layers(plan: Plan, recipe: Recipe) -> None:
    """Raise RecipeError where float layers are to be retrained, but none or all are float.

    A search chooses the layers later.
    """
    if "float-layers" not in recipe.learn or recipe.searches:
        return
    if not plan.float_layers:
        raise RecipeError(
            "The option 'learn' = 'float-layers' trains the layers left in float, and there are "
            "none; name some with --exclude, or with 'keep_float' in 'layers' of the recipe."
        )
    if not plan.layers:
        raise RecipeError(
            "The option 'learn' = 'float-layers' retrains around quantized layers, and every layer "
            "is left in float; name fewer with --exclude."
        )


WIDE_ENOUGH = 6
"""So many bits serve the first and the last layer too, where the recipe says nothing."""

WIDE = 8
"""Bits that they get otherwise."""


def first_and_last(layers: Sequence[Layer]) -> frozenset[ir.Node]:
    """The nodes of the first and last layers in graph order, whether float or not.

    A table is neither: its lookup is no product.
    """
    multiply = [layer for layer in layers if layer.node.op_type != TABLE]
    return frozenset(layer.node for layer in (*multiply[:1], *multiply[-1:]))


def for_first_and_last(recipe: Recipe) -> Recipe:
    """The recipe for the first and last layers, with their bits for weights and inputs.

    Settings of single layers take precedence.
    """
    stated = recipe.first_last_bits
    weight_bits = _wide(recipe.weight_bits) if stated is None else stated
    bits = recipe.activation_bits
    if bits is not None:
        bits = _wide(bits) if stated is None else max(bits, stated)
    return replace(recipe, weight_bits=weight_bits, activation_bits=bits)


def _wide(num_bits: int) -> int:
    return num_bits if num_bits >= WIDE_ENOUGH else WIDE
