from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import HEAD, image_graph, quantize, serialised

from onnxq.errors import RecipeError
from onnxq.export.compact import export
from onnxq.options.recipe import LayerOverride, Recipe, recipe_from_fields
from onnxq.plan import make_plan
from onnxq.plan.spec import codebook_bytes, codebook_refusal, integer_bytes, weight_bytes


def wide() -> ir.Model:
    """A graph whose second layer has 6 x 6 x 16 x 16 weights."""
    weight = np.random.default_rng(0).normal(0, 0.05, (6, 6, 16, 16)).astype(np.float32)
    body = f"a = Conv <pads = [9, 9, 9, 9]> (x, wx, bx) r = Relu (a) z = Conv (r, wide, b6) {HEAD}"
    return image_graph(body, wide=weight)


def test_small_layers_keep_codes_and_say_why():
    plan = make_plan(wide(), Recipe(codebook=16))
    large = plan.layers["Conv_z"]
    assert (large.codebook, large.refusal) == (16, "")
    small = plan.layers["Conv_a"]
    assert small.codebook is None
    assert small.refusal.startswith("no codebook: 16 centroids take ")
    assert small.refusal.endswith("bytes, integers 162")
    assert small.reason == "" and small.compute == "integer"


def test_off_by_default():
    assert Recipe().codebook is None
    plan = make_plan(wide(), Recipe())
    assert {(s.codebook, s.refusal) for s in plan.layers.values()} == {(None, "")}


def test_256_centroids_save_nothing_over_codes():
    assert codebook_refusal(10**6, 256, integer=True)
    assert not codebook_refusal(10**6, 128, integer=False)


def test_shared_weights_take_the_larger_table_or_none():
    body = f"a = Conv (x, w3) b = Conv (x, w3) s = Add (a, b) z = Relu (s) {HEAD}"
    weight = np.random.default_rng(0).normal(0, 0.05, (6, 3, 16, 16)).astype(np.float32)
    body = body.replace("Conv (x", "Conv <pads = [9, 9, 9, 9]> (x")
    model = image_graph(body, w3=weight)
    both = Recipe(codebook=4, layers=(LayerOverride("Conv_b", codebook=16),))
    assert {make_plan(model, both).layers[n].codebook for n in ("Conv_a", "Conv_b")} == {16}
    one = Recipe(layers=(LayerOverride("Conv_b", codebook=16),))
    assert {make_plan(model, one).layers[n].codebook for n in ("Conv_a", "Conv_b")} == {None}


@pytest.mark.parametrize("count", [0, 1, 257, 2.5, True, "some"])
def test_counts_out_of_range_are_one_sentence(count):
    with pytest.raises(
        RecipeError, match=r"'codebook' is .*a whole number from 2 to 256 or auto or off\.$"
    ):
        recipe_from_fields({"codebook": count}, "'r.toml'")
    with pytest.raises(RecipeError, match="of the layers 'Conv' "):
        recipe_from_fields({"layers": [{"pattern": "Conv", "codebook": count}]}, "'r.toml'")


@pytest.mark.parametrize("count", [2, 3, 7, 16, 17, 127])
def test_the_estimate_is_that_of_the_file(count):
    model = wide()
    plain, made = (quantize(model, recipe=Recipe(codebook=k)) for k in (None, count))
    spec = made.plan.layers["Conv_z"]
    files = (len(serialised(export(m.student, m.qparams))) for m in (plain, made))
    saved = next(files) - next(files)
    estimate = spec.parameters - codebook_bytes(spec.parameters, count, integer=True)
    # The first lookup of a file has the constants that further ones share.
    assert abs(saved - estimate) < 80


FORMS = (
    {}, {"weight_bits": 2}, {"weight_bits": 4}, {"weight_bits": 7}, {"codebook": 16},
    {"codebook": 16, "granularity": "per-tensor"}, {"weight_bits": 4, "granularity": "per-tensor"},
)  # fmt: skip


@pytest.mark.parametrize("activation_bits", [8, None])
def test_forms_are_compared_by_what_their_files_hold(activation_bits):
    """Scales and zero points count: forms of one layer differ as their files do."""
    model, found = wide(), []
    for form in FORMS:
        layers = (LayerOverride("Conv_z", **form),) if form else ()
        made = quantize(model, recipe=Recipe(activation_bits=activation_bits, layers=layers))
        spec = made.plan.layers["Conv_z"]
        estimate = weight_bytes(spec, integer=activation_bits is not None)
        found.append((len(serialised(made.exported)), estimate))
    for size, estimate in found[1:]:
        assert abs((size - found[0][0]) - (estimate - found[0][1])) < 300
    scales = 4 * 6 + (6 if activation_bits else 0)
    assert found[0][1] == 9216 + scales
    one = 4 + 1 if activation_bits else 0
    assert found[4][1] - found[5][1] == scales - one


@pytest.mark.parametrize(("num_bits", "ratio"), [(2, 0.2), (3, 0.375), (4, 0.5), (7, 0.875)])
def test_low_bits_are_packed_where_that_saves_bytes(num_bits, ratio):
    plan = make_plan(wide(), Recipe(weight_bits=num_bits, first_last_bits=num_bits))
    layer = plan.layers["Conv_z"]
    assert (layer.num_bits, layer.packed, layer.refusal) == (num_bits, True, "")
    size = integer_bytes(layer.parameters, num_bits)
    assert ratio < size / layer.parameters < ratio + 0.12
    small = plan.layers["Conv_a"]
    assert (small.num_bits, small.packed) == (num_bits, False)
    assert small.refusal.startswith(f"one weight per byte: packed, {num_bits} bits take ")
    assert integer_bytes(small.parameters, num_bits) == small.parameters == 162


def test_bytes_are_not_packed():
    layer = make_plan(wide(), Recipe()).layers["Conv_z"]
    assert (layer.packed, integer_bytes(layer.parameters, 8)) == (False, layer.parameters)
