"""Layers left float by the recipe, as parameters of a student that retrains them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxq.errors import RecipeError
from onnxq.plan.layers import Layer, spec_of
from onnxq.plan.spec import LayerSpec, Plan
from onnxq.recipe import Recipe

EXCLUDED = "it is excluded by the recipe"
RETRAINED = f"{EXCLUDED}; retrained"
FLOAT_BITS = 32


def retrained_layers(excluded: Sequence[Layer], quantized: Sequence[Layer]) -> dict[str, LayerSpec]:
    """Specs of the layers to retrain: those whose weight no quantized layer reads too."""
    taken = {layer.weight.name for layer in quantized}
    return {
        str(layer.node.name): _spec(layer) for layer in excluded if layer.weight.name not in taken
    }


def _spec(layer: Layer) -> LayerSpec:
    return replace(spec_of(layer, None, FLOAT_BITS, "float"), reason=RETRAINED)


def check_float_layers(plan: Plan, recipe: Recipe) -> None:
    """Raise RecipeError where float layers are to be retrained and none or all of them are float.

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
