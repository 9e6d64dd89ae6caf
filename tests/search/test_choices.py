"""What an allocation may choose from: what the recipe leaves open, and what lies between."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import HEAD, image_graph

from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.plan import Plan, make_plan
from onnxq.plan.spec import weight_bytes
from onnxq.search.table import (
    CODE_GAIN,
    CODEBOOK_GAIN,
    FLOAT,
    ROUNDING_GAIN,
    Effect,
    Row,
    Setting,
    SweepTable,
    choices,
    is_free,
)

FIRST, MIDDLE, LAST = "Conv_a", "Conv_z", "Gemm_y"
WIDTHS, COUNTS = (2, 3, 4, 5, 6, 8), (4, 8, 16)


@pytest.fixture(scope="module")
def model() -> ir.Model:
    rng = np.random.default_rng(0)
    wide = rng.normal(0, 0.05, (6, 6, 16, 16)).astype(np.float32)
    body = f"a = Conv <pads = [9, 9, 9, 9]> (x, wx, bx) r = Relu (a) z = Conv (r, wide, b6) {HEAD}"
    return image_graph(body, wide=wide)


def tried(plan: Plan) -> SweepTable:
    """A table whose errors are 4^-bits."""
    widths = {Setting(weight_bits=n): Effect(100 * n, 4.0**-n) for n in WIDTHS}
    counts = {Setting(codebook=k): Effect(90 * k, 1 / k**2) for k in COUNTS}
    effects = {**counts, **widths, FLOAT: Effect(3200, 0.0)}
    rows = tuple(Row((s.name,), s.parameters, effects) for s in plan.layers.values())
    return SweepTable(rows, "kl", 64)


def free(model: ir.Model, recipe: Recipe, *, floats: bool = False) -> dict[str, Row]:
    plan = make_plan(model, recipe)
    return {row.name: row for row in choices(tried(plan), plan, recipe, floats=floats)}


def test_what_lies_between_is_interpolated(model):
    recipe = Recipe(codebook="auto", learn=("none",))
    plan = make_plan(model, recipe)
    effects = free(model, recipe)[MIDDLE].effects
    assert {s.weight_bits for s in effects if s.weight_bits} == {2, 3, 4, 5, 6, 7, 8}
    assert {s.codebook for s in effects if s.codebook} == {4, 6, 8, 12, 16}
    assert effects[Setting(weight_bits=7)].error == pytest.approx(4.0**-7)
    assert effects[Setting(codebook=12)].error == pytest.approx(1 / 144)
    # 9,216 weights of 7 bits in two fields and one of one, six scales and six zero points.
    spec = plan.layers[MIDDLE]
    size = effects[Setting(weight_bits=7)].size
    assert size == 9216 * 7 // 8 + 127 + 20 + 3 * 230 + 6 * 5
    assert size < weight_bytes(spec, integer=True) == 9216 + 30
    counts = effects[Setting(codebook=12)]
    assert counts.size == math.ceil(9216 / 5) + 9216 // 4 + 12 + 20 + 2 * 230 + 6 * 5


@pytest.mark.parametrize(
    ("learn", "book", "code"),
    [
        (("none",), 1, 1),
        (("auto",), CODEBOOK_GAIN, ROUNDING_GAIN),
        (("rounding", "thresholds"), 1, ROUNDING_GAIN),
        (("codebooks",), CODEBOOK_GAIN, 1),
        (("thresholds", "biases"), 1, CODE_GAIN),
    ],
)
def test_errors_are_those_that_learning_leaves(model, learn, book, code):
    effects = free(model, Recipe(codebook="auto", learn=learn), floats=True)[MIDDLE].effects
    assert effects[Setting(codebook=8)].error == pytest.approx(1 / 64 / book)
    assert effects[Setting(weight_bits=3)].error == pytest.approx(1 / 64 / code)
    assert effects[Setting(weight_bits=3)].size == 300 and effects[FLOAT].error == 0


def test_nothing_is_put_between_settings_without_error(model):
    plan = make_plan(model, Recipe())
    effects = {Setting(weight_bits=n): Effect(100 * n, 0.0) for n in (6, 8)}
    table = SweepTable((Row((MIDDLE,), 9216, effects),), "kl", 8)
    (row,) = choices(table, plan, Recipe(), floats=False)
    assert row.effects == effects


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {FIRST, MIDDLE, LAST}),
        ({"first_last_bits": 8}, {MIDDLE}),
        ({"layers": (LayerOverride(MIDDLE, weight_bits=6),)}, {FIRST, LAST}),
        ({"layers": (LayerOverride("Conv", codebook=32),)}, {LAST}),
        ({"layers": (LayerOverride("Conv", calibration="max"),)}, {FIRST, MIDDLE, LAST}),
        (
            {
                "layers": (
                    LayerOverride("*", codebook=32),
                    LayerOverride("*", codebook="off"),
                    LayerOverride(FIRST, granularity="per-tensor"),
                )
            },
            {FIRST, MIDDLE, LAST},
        ),
        ({"first_last_bits": 8, "exclude": (FIRST,)}, {MIDDLE}),
    ],
)
def test_what_the_recipe_states_is_no_choice(model, options, names):
    recipe = Recipe(codebook="auto", **options)
    plan = make_plan(model, recipe)
    assert set(free(model, recipe)) == names
    assert {n for n, s in plan.layers.items() if is_free([s], plan, recipe)} == names


def test_layers_without_codebooks_have_widths_alone(model):
    recipe = Recipe(codebook="auto", layers=(LayerOverride(MIDDLE, codebook="off"),))
    rows = free(model, recipe)
    assert not any(s.codebook for s in rows[MIDDLE].effects)
    assert any(s.codebook for s in rows[FIRST].effects)


def test_floats_are_a_choice_where_activations_are(model):
    assert FLOAT not in free(model, Recipe())[MIDDLE].effects
    assert FLOAT in free(model, Recipe(), floats=True)[MIDDLE].effects
