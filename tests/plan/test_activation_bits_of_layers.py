"""The width of one layer's output, whatever the width of the others."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest
from small_graphs import images, quantize, run, small_graph

from onnxq.errors import RecipeError
from onnxq.options.recipe import LayerOverride, Recipe, recipe_from_fields, recipe_toml
from onnxq.plan import make_plan


def test_a_layer_has_the_width_that_the_recipe_states_for_it():
    model = small_graph("residual")
    plain = make_plan(model, Recipe())
    assert {spec.num_bits for spec in plain.tensors.values()} == {8}
    stated = Recipe(layers=(LayerOverride("Conv_a", activation_bits=4),))
    widths = {name: spec.num_bits for name, spec in make_plan(model, stated).tensors.items()}
    narrow = [name for name, width in widths.items() if width == 4]
    assert len(narrow) == 1 and set(widths.values()) == {4, 8}


def test_it_goes_before_the_width_of_first_and_last_layers():
    model = small_graph("residual")
    recipe = Recipe(activation_bits=3, layers=(LayerOverride("*", activation_bits=5),))
    widths = {spec.num_bits for spec in make_plan(model, recipe).tensors.values()}
    assert widths == {5}


def test_a_mix_of_widths_exports_what_the_student_computes():
    recipe = Recipe(
        activation_bits=6,
        weight_bits=5,
        layers=(LayerOverride("Conv_a", activation_bits=4, weight_bits=3),),
    )
    made = quantize(small_graph("residual"), recipe=recipe)
    x = images(8, seed=1)
    clips = [node for node in made.exported.graph if node.op_type == "Clip"]
    assert len({node.inputs[2].name for node in clips}) == 2
    found, expected = run(made.exported, {"x": x})["y"], run(made.baked, {"x": x})["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_it_is_kept_in_a_file_and_contradicts_float_activations():
    recipe = Recipe(layers=(LayerOverride("a", activation_bits=4),))
    assert recipe_from_fields(tomllib.loads(recipe_toml(recipe)), "r") == recipe
    assert Recipe.from_json(recipe.to_json()) == recipe
    with pytest.raises(RecipeError, match="'activation_bits' = 'none' and 'activation_bits' of"):
        Recipe(activation_bits=None, layers=recipe.layers)
    with pytest.raises(RecipeError, match="from 2 to 8"):
        LayerOverride("a", activation_bits=9)
