"""Layers left float by the recipe, as parameters that are retrained."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import BODIES, images, quantize, run, small_graph

from onnxq.errors import RecipeError
from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.plan import make_plan
from onnxq.plan.layers import RETRAINED, check_float_layers

FLOAT = ("float-layers",)


@pytest.mark.parametrize("activation_bits", [8, None])
def test_excluded_layers_are_retrained_and_say_so(activation_bits):
    override = LayerOverride("Conv_c", keep_float=True)
    recipe = Recipe(
        learn=FLOAT, exclude=("Gemm",), layers=(override,), activation_bits=activation_bits
    )
    plan = make_plan(small_graph("residual"), recipe)
    assert list(plan.float_layers) == ["Conv_c", "Gemm_y"]
    assert list(plan.layers) == ["Conv_a"]
    assert {s.compute for s in plan.float_layers.values()} == {"float"}
    assert plan.left_alone == {"Conv_c": RETRAINED, "Gemm_y": RETRAINED}


def test_without_the_option_they_are_only_left_alone():
    plan = make_plan(small_graph("residual"), Recipe(exclude=("Gemm",)))
    assert plan.float_layers == {}
    assert plan.left_alone == {"Gemm_y": "it is excluded by the recipe"}


def test_a_weight_that_a_quantized_layer_reads_too_is_not_retrained():
    plan = make_plan(small_graph("shared"), Recipe(learn=FLOAT, exclude=("Conv_c",)))
    assert plan.float_layers == {}
    assert plan.layers["Conv_d"].weight == "v6"


@pytest.mark.parametrize("exclude", [(), ("Conv", "Gemm")])
def test_none_or_all_of_the_layers_in_float_is_an_error(exclude):
    recipe = Recipe(learn=FLOAT, exclude=exclude)
    plan = make_plan(small_graph("residual"), recipe)
    with pytest.raises(RecipeError, match=r"float-layers.*--exclude"):
        check_float_layers(plan, recipe)


@pytest.mark.parametrize("activation_bits", [8, None])
@pytest.mark.parametrize("name", sorted(BODIES))
def test_their_parameters_are_inputs_and_are_written_as_floats(name, activation_bits):
    model = small_graph(name)
    last = list(make_plan(model, Recipe()).layers)[-2:]
    recipe = Recipe(learn=FLOAT, exclude=tuple(last), activation_bits=activation_bits)
    made = quantize(model, recipe=recipe)
    inputs = {value.name for value in made.student.model.graph.inputs}
    for spec in made.plan.float_layers.values():
        assert spec.weight in inputs and (spec.bias is None or f"{spec.name}.bias" in inputs)
        found = made.exported.graph.initializers[spec.weight].const_value
        assert found is not None
        np.testing.assert_array_equal(found.numpy(), made.qparams.weights[spec.weight])
    feeds = {"x": images(4)}
    student, exported = run(made.baked, feeds)["y"], run(made.exported, feeds)["y"]
    np.testing.assert_allclose(student, exported, atol=1e-5)
