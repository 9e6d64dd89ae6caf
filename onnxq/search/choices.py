"""The candidate settings of an allocation, from the table of a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from onnxq.options.recipe import Recipe
from onnxq.options.table import OFF
from onnxq.plan.spec import LayerSpec, Plan, weight_bytes
from onnxq.search.table import FLOAT, Effect, Row, Setting, SweepTable

CODEBOOK_GAIN, CODE_GAIN, ROUNDING_GAIN = 3.0, 1.4, 7.0
"""Error before over after training: measured 2.4 to 3.4 with codebooks, with integers 1.0 to 1.7 by
thresholds, 7 by rounding at 4 bits and 15 at 3."""


def choices(table: SweepTable, plan: Plan, recipe: Recipe, *, floats: bool) -> list[Row]:
    """The rows that an allocation may set, each with all its candidate settings.

    Settings between two measured ones get an interpolated error: codebook sizes of three times a
    power of two, and 7 bits. Errors are those expected after training, which lowers them by a
    factor that depends on the kind of setting and on what is trained.

    Args:
        table: of the sweep.
        plan: of the layers that were tried.
        recipe: the options.
        floats: whether a layer may stay float.
    """
    rows = []
    for row in table.rows:
        specs = [plan.layers[name] for name in row.layers]
        if not is_free(specs, plan, recipe):
            continue
        integers = any(_stated(spec, recipe).get("codebook") == OFF for spec in specs)
        effects = {
            setting: replace(effect, error=effect.error / _gain(setting, recipe))
            for setting, effect in {**row.effects, **_between(row, specs)}.items()
            if (floats or setting != FLOAT) and not (integers and setting.codebook is not None)
        }
        rows.append(replace(row, effects=effects))
    return rows


def _gain(setting: Setting, recipe: Recipe) -> float:
    """The factor by which the recipe's training is expected to lower a setting's error."""
    if setting.codebook is not None:
        return CODEBOOK_GAIN if {"auto", "codebooks"} & {*recipe.learn} else 1.0
    if {"auto", "rounding"} & {*recipe.learn}:
        return ROUNDING_GAIN
    return CODE_GAIN if "thresholds" in recipe.learn else 1.0


def is_free(specs: Sequence[LayerSpec], plan: Plan, recipe: Recipe) -> bool:
    """Whether a search may set the layers of one weight.

    It may not where the recipe states their codebook size or bit width, in `layers` or, for the
    first and last layers, by `first_last_bits`.

    Args:
        specs: the layers of the weight.
        plan: of all layers.
        recipe: the options.
    """
    for spec in specs:
        stated = _stated(spec, recipe)
        if "weight_bits" in stated or stated.get("codebook", OFF) != OFF:
            return False
        if recipe.first_last_bits is not None and spec.name in plan.ends:
            return False
    return True


def _stated(spec: LayerSpec, recipe: Recipe) -> dict[str, object]:
    return recipe.stated_for(spec.name, spec.op_type)


def _between(row: Row, specs: Sequence[LayerSpec]) -> dict[Setting, Effect]:
    """Interpolated settings: 3, 6, 12, ... centroids and 7 bits.

    The logarithm of the error is nearly linear in log K, and in the bits.
    """
    integer = any(spec.compute == "integer" for spec in specs)
    found = {}
    for low, middle, high, share in _triples(row):
        below, above = row.effects[low], row.effects[high]
        if min(below.error, above.error) <= 0:
            continue
        logs = (1 - share) * math.log(below.error) + share * math.log(above.error)
        form = {"codebook": middle.codebook, "num_bits": middle.weight_bits or specs[0].num_bits}
        size = weight_bytes(replace(specs[0], **form), integer=integer)  # type: ignore[arg-type]
        found[middle] = Effect(size, math.exp(logs))
    return found


def _triples(row: Row) -> list[tuple[Setting, Setting, Setting, float]]:
    """Two measured settings, the one between them, and its relative position."""
    counts = [s.codebook for s in row.effects if s.codebook is not None]
    widths = [s.weight_bits for s in row.effects if s.weight_bits is not None]
    books = [
        (Setting(k), Setting(k * 3 // 2), Setting(2 * k), math.log2(1.5))
        for k in counts
        if 2 * k in counts
    ]
    integers = [
        (Setting(None, n), Setting(None, n + 1), Setting(None, n + 2), 0.5)
        for n in widths
        if n + 2 in widths and n + 1 not in widths
    ]
    return books + integers
