"""The settings among which an allocation chooses, from the table of a sweep."""

from __future__ import annotations

import math
from dataclasses import replace

from onnxq.plan.codebooks import codebook_bytes
from onnxq.plan.spec import LayerSpec, Plan
from onnxq.recipe import Recipe
from onnxq.search.table import FLOAT, Effect, Row, Setting, SweepTable


def choices(table: SweepTable, plan: Plan, recipe: Recipe, *, floats: bool) -> list[Row]:
    """The rows that an allocation is free to set, each with all settings that it may have.

    Counts of three times a power of two lie between those that were tried; their errors are
    interpolated. Layers whose codebook the recipe states are left as they are.

    Args:
        table: of the sweep.
        plan: of the layers that were tried.
        recipe: the options.
        floats: whether a layer may stay float.
    """
    rows = []
    for row in table.rows:
        specs = [plan.layers[name] for name in row.layers]
        if any(_is_stated(spec, recipe) for spec in specs):
            continue
        effects = {s: e for s, e in row.effects.items() if floats or s != FLOAT}
        integer = any(spec.compute == "integer" for spec in specs)
        rows.append(replace(row, effects=effects | _between(row, integer=integer)))
    return rows


def _is_stated(spec: LayerSpec, recipe: Recipe) -> bool:
    return any(
        each.codebook is not None and each.matches(spec.name, spec.op_type)
        for each in recipe.layers
    )


def _between(row: Row, *, integer: bool) -> dict[Setting, Effect]:
    """Counts 3, 6, 12, ...: log error is nearly linear in log K."""
    found = {}
    share = math.log2(1.5)
    for setting, effect in row.effects.items():
        count = setting.codebook
        above = row.effects.get(Setting(codebook=2 * count)) if count else None
        if count is None or above is None or min(effect.error, above.error) <= 0:
            continue
        logs = (1 - share) * math.log(effect.error) + share * math.log(above.error)
        middle = count * 3 // 2
        size = codebook_bytes(row.parameters, middle, integer=integer)
        found[Setting(codebook=middle)] = Effect(size, math.exp(logs))
    return found
