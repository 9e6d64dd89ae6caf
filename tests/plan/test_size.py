"""Bytes known from the plan: against real files, and what stays float because of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import BODIES, HEAD, build, image_graph, images, quantize, small_graph

from onnxq.export.compact import compact, float_bytes
from onnxq.export.save import model_bytes
from onnxq.load.model import load_model
from onnxq.normalise.pipeline import normalise
from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.plan import Plan, make_plan
from onnxq.plan.size import saved_bytes

BITS = {"8": {}, "weight-only": {"activation_bits": None}, "4": {"weight_bits": 4}}


def file_bytes(model: ir.Model, feeds: dict, recipe: Recipe) -> tuple[int, int]:
    """Of a quantized model: what its plan says, and what its file has."""
    found = quantize(model, FewFeeds(feeds), recipe)
    expected = float_bytes(model) - saved_bytes(model.graph, found.plan)
    return expected, model_bytes(found.exported)


class FewFeeds:
    def __init__(self, feeds: dict) -> None:
        self.feeds = feeds

    def batches(self, size: int) -> list[dict]:
        return [self.feeds]


@pytest.mark.parametrize("body", ["relu", "residual", "excite", "depth_wise", "shared", "split"])
def test_the_plan_knows_the_bytes_of_small_graphs(body):
    expected, found = file_bytes(small_graph(body), {"x": images()}, Recipe())
    assert expected == pytest.approx(found, rel=0.04)
    assert expected >= found


@pytest.mark.parametrize("options", BITS.values(), ids=BITS)
@pytest.mark.parametrize(("name", "shape"), [("mlp", (4, 1, 8, 8)), ("mobilenet", (4, 1, 32, 32))])
def test_the_plan_knows_the_bytes_of_sample_models(sample_models, name, shape, options):
    model = normalise(load_model(sample_models / f"digits_{name}.onnx"), None).model
    (value,) = model.graph.inputs
    sizes = [each if isinstance(each, int) else 4 for each in value.shape]
    feeds = {value.name: np.random.default_rng(0).normal(size=sizes).astype(np.float32)}
    expected, found = file_bytes(model, feeds, Recipe(**options))
    assert expected == pytest.approx(found, rel=0.06)


def test_bytes_of_a_float_model_are_those_of_its_file(sample_models):
    model = normalise(load_model(sample_models / "digits_mlp.onnx"), None).model
    before = model_bytes(model)
    written = model.clone()
    compact(written, model.graph)
    # Weights are set aside, and the fields that say where they are.
    assert float_bytes(model) == pytest.approx(model_bytes(written), abs=20)
    assert model_bytes(model) == before


def smaller(model: ir.Model, **options: object) -> Plan:
    return make_plan(model, Recipe(**options), smaller=True)


def wide_graph() -> ir.Model:
    """A large layer, one of 36 weights, a large one."""
    body = (
        "a = Conv <pads = [1, 1, 1, 1]> (x, big, b6) r = Relu (a) t = Conv (r, v6, c6) "
        "z = Conv <pads = [1, 1, 1, 1]> (t, more, d12) g = GlobalAveragePool (z) f = Flatten (g) "
        "y = Gemm <transB = 1> (f, wide, e40)"
    )
    rng = np.random.default_rng(0)
    shapes = {"big": (6, 3, 9, 9), "more": (12, 6, 9, 9), "d12": (12,), "wide": (40, 12)}
    arrays = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    return image_graph(body, "float[N, 40] y", e40=np.zeros(40, np.float32), **arrays)


def test_a_layer_that_is_no_smaller_stays_float_with_the_reason():
    plan = smaller(wide_graph())
    assert set(plan.layers) == {"Conv_a", "Conv_z", "Gemm_y"}
    assert [spec.compute for spec in plan.layers.values()] == ["integer"] * 3
    assert plan.left_alone["Conv_t"].endswith("bytes, not 144")
    # Planning the result again changes nothing, nor does planning change the model.
    assert smaller(wide_graph()) == plan


def test_a_layer_that_the_recipe_has_settings_for_is_quantized_all_the_same():
    stated = (LayerOverride("Conv_t", weight_bits=8),)
    assert set(smaller(wide_graph(), layers=stated).layers) == set(
        make_plan(wide_graph(), Recipe()).layers
    )


@pytest.mark.parametrize("body", ["relu", "residual", "concat"])
def test_a_plan_that_is_smaller_saves_bytes_or_has_no_layers(body):
    model = small_graph(body)
    plan = smaller(model)
    assert not plan.layers or saved_bytes(model.graph, plan) > 0
    assert set(plan.layers) | set(plan.left_alone) == set(make_plan(model, Recipe()).layers)


def test_a_weight_that_layers_share_counts_once_and_they_stay_together():
    model = small_graph("shared")
    plan = smaller(model)
    assert ("Conv_c" in plan.layers) == ("Conv_d" in plan.layers)
    two = build(
        "net (float[N, 8] x) => (float[N, 8] y) "
        "{ a = MatMul (x, w) r = Relu (a) y = MatMul (r, w) }",
        {"w": (8, 8)},
    )
    one = build("net (float[N, 8] x) => (float[N, 8] y) { y = MatMul (x, w) }", {"w": (8, 8)})
    both, single = (
        saved_bytes(m.graph, make_plan(m, Recipe(activation_bits=None))) for m in (two, one)
    )
    assert both == pytest.approx(single, abs=4)


def test_what_a_last_layer_gives_others_is_worth_its_bytes():
    """Without a quantized Gemm the convolution before it would have no integer kernel."""
    body = f"{BODIES['relu'].replace('wx', 'big')} {HEAD}"
    big = np.random.default_rng(0).normal(size=(6, 3, 9, 9)).astype(np.float32)
    plan = smaller(image_graph(body, big=big))
    assert [spec.compute for spec in plan.layers.values()] == ["integer", "integer"]
