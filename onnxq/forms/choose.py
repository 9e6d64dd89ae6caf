"""The forms of a model, each quantized; the held-out samples decide which one is best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxq.calibrate.calibrator import TensorStatistics
from onnxq.errors import DataError
from onnxq.forms.equalize import equalize, find_pairs
from onnxq.forms.variant import PLAIN, Quantize, Variant, requantize
from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.options.table import OFF
from onnxq.plan import Plan, make_plan

SAFE, REPLACE = "equalized", "equalized, ReLU6 replaced by ReLU"


def choose_form(model: ir.Model, recipe: Recipe, quantize: Quantize) -> Variant:
    """The plain form, or an equalized one where its held-out score is lower.

    Forms are compared with integer weights; codebooks are fitted for the best form only.

    Args:
        model: the normalised float model.
        recipe: the options.
        quantize: quantizes a form: plan, calibrate, student.

    Raises:
        DataError: the difference to the original's outputs is not finite on these samples.
    """
    pairs = find_pairs(model) if recipe.equalize and _gains(make_plan(model, recipe)) else []
    compared = _without_codebooks(recipe) if pairs else recipe
    best = quantize(PLAIN, model, compared)
    if pairs:
        tensors = list(dict.fromkeys(pair.tensor for pair in pairs))
        largest = _channel_maxima(quantize.calibrate("channel ranges", model, [], tensors))
        forms = {SAFE: equalize(model, largest, "safe")}
        if any(pair.clip is not None for pair in pairs):
            forms[REPLACE] = equalize(model, largest, "replace")
        for name, form in forms.items():
            variant = quantize(name, form, compared)
            if variant.score < best.score:
                best = variant
    if compared != recipe:
        best = requantize(best, recipe, quantize)
    if not math.isfinite(best.score):
        raise DataError(
            "the samples are too large for the model: the difference to its outputs is not a "
            "finite number; give samples of the range that the model was trained on"
        )
    return best


def _channel_maxima(found: Mapping[str, TensorStatistics]) -> dict[str, np.ndarray]:
    result = {}
    for name, statistics in found.items():
        low, high = statistics.channel_minimum, statistics.channel_maximum
        if low is not None and high is not None:
            result[name] = np.maximum(high, -low)
    return result


def _without_codebooks(recipe: Recipe) -> Recipe:
    """The recipe with integer weights in place of codebooks."""
    counts = (recipe.codebook, *(layer.codebook for layer in recipe.layers))
    if not any(isinstance(count, int) for count in counts):
        return recipe
    return replace(recipe, layers=(*recipe.layers, LayerOverride("*", codebook=OFF)))


def _gains(plan: Plan) -> bool:
    """Whether equal channel ranges can help: not with float activations and per-channel scales."""
    layers = plan.layers.values()
    return bool(plan.tensors) or any(layer.axis is None for layer in layers)
