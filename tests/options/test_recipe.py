from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import OutputError, RecipeError
from onnxq.options.recipe import (
    LayerOverride,
    Recipe,
    load_recipe,
    nearest_name,
    recipe_from_fields,
    recipe_toml,
    save_recipe,
)
from onnxq.options.table import RATES

GRANULARITY = st.sampled_from(["per-channel", "per-tensor"])
CALIBRATION = st.sampled_from(["max", "mse", "aciq", "kl", "percentile"])
LAYERS = st.builds(
    LayerOverride,
    pattern=st.text(min_size=1, max_size=8),
    weight_bits=st.integers(2, 8),
    codebook=st.none() | st.integers(2, 256) | st.just("off"),
    granularity=st.none() | GRANULARITY,
    symmetric=st.none() | st.booleans(),
    calibration=st.none() | CALIBRATION,
) | st.builds(LayerOverride, pattern=st.text(min_size=1, max_size=8), keep_float=st.booleans())
RATE = st.floats(1e-9, 10)
RECIPES = st.builds(
    Recipe,
    samples=st.integers(1, 10**6),
    batch_size=st.none() | st.integers(1, 999),
    weight_bits=st.integers(2, 8),
    first_last_bits=st.none() | st.integers(2, 8),
    activation_bits=st.none() | st.integers(2, 8),
    granularity=GRANULARITY,
    calibration=CALIBRATION,
    codebook=st.none() | st.just("auto"),
    bias_centroids=st.none() | st.integers(1, 256),
    max_size=st.none() | st.floats(0.01, 0.99) | st.integers(2, 10**9),
    equalize=st.booleans(),
    bias_correction=st.booleans(),
    fallback=st.booleans(),
    effort=st.sampled_from(["fast", "default", "max"]),
    epochs=st.none() | st.integers(1, 99),
    max_minutes=st.floats(0.01, 1e4),
    lr=st.none() | RATE | st.dictionaries(st.sampled_from(RATES), RATE, min_size=1),
    optimizer=st.sampled_from(["adam", "sgd"]),
    loss=st.sampled_from(["outputs", "distillation"]),
    augment=st.lists(st.sampled_from(["flip", "shift"]), min_size=1, max_size=2).map(tuple)
    | st.sampled_from([("auto",), ("none",)]),
    exclude=st.lists(st.text(min_size=1, max_size=8), max_size=3).map(tuple),
    target=st.sampled_from(["cpu", "cpu-avx2", "int4"]),
    seed=st.integers(0, 2**31),
    layers=st.lists(LAYERS, max_size=3).map(tuple),
)


@given(recipe=RECIPES)
@settings(deadline=None, max_examples=100)
def test_round_trip_through_json_and_toml(recipe, tmp_path_factory):
    assert Recipe.from_json(recipe.to_json()) == recipe
    path = tmp_path_factory.mktemp("recipes") / "r.toml"
    save_recipe(recipe, path)
    assert load_recipe(path) == recipe


def test_defaults_and_hand_written_toml(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text("")
    assert load_recipe(path) == Recipe()
    path.write_text(
        'weight-bits = 7\nactivation_bits = "none"\nexclude = "head"\nmax-minutes = 2\n'
        '[[layers]]\npattern = "Conv"\ngranularity = "per-tensor"\n'
    )
    assert load_recipe(path) == Recipe(
        weight_bits=7,
        activation_bits=None,
        exclude=("head",),
        max_minutes=2.0,
        layers=(LayerOverride("Conv", granularity="per-tensor"),),
    )


@pytest.mark.parametrize(
    "text", ["lr = {weights = 0.001, steps = 2}", "seed = 0\n[lr]\nweights = 0.001\nsteps = 2"]
)
def test_rates_by_kind_in_toml(tmp_path, text):
    path = tmp_path / "r.toml"
    path.write_text(f'learn = ["weights", "steps"]\naugment = "flip"\n{text}\n')
    expected = Recipe(
        learn=("weights", "steps"), augment=("flip",), lr={"weights": 0.001, "steps": 2}
    )
    assert load_recipe(path) == expected
    save_recipe(expected, path)
    assert load_recipe(path) == expected
    assert Recipe.from_json(expected.to_json()) == expected


def test_older_names_are_still_taken():
    expected = Recipe(fallback=False)
    assert recipe_from_fields({"spare": False}, "'r.toml'") == expected
    assert "fallback = false" in recipe_toml(expected)
    # The keys of JSON are a promise.
    assert '"spare":false' in expected.to_json() and "fallback" not in expected.to_json()
    with pytest.warns(DeprecationWarning, match="'spare' of a recipe is now called 'fallback'"):
        assert Recipe(spare=False) == expected
    with pytest.warns(DeprecationWarning):
        assert dataclasses.replace(expected, spare=True) == Recipe()
    assert expected.spare is False


def test_a_sweep_keeps_nothing_of_how_to_learn():
    recipe = Recipe(optimizer="sgd", loss="outputs", lr={"weights": 0.1}, augment=("flip",))
    assert recipe.for_sweep() == Recipe(codebook="auto", learn=("none",))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"calibraton": "mse"}, "'calibraton' in 'r.toml'; the nearest known one is 'calibration'"),
        ({"layers": [{"pattern": "a", "keepfloat": True}]}, "nearest known one is 'keep_float'"),
        ({"spare": True, "fallback": False}, "'fallback' is given twice in 'r.toml'; give it once"),
        ({"weight-bits": 4, "weight_bits": 4}, "'weight_bits' is given twice"),
        ({"layers": [{"keep_float": True}]}, "no 'pattern'"),
        (
            {"layers": [{"pattern": "a", "activation_bits": "none"}]},
            r"'activation_bits' of the layers 'a' is 'none'; expected a whole number from 2 to 8\.",
        ),
        ({"layers": {"pattern": "a"}}, r"tables '\[\[layers\]\]'"),
        ({"layers": [{"pattern": "a"}]}, "layers 'a' sets nothing; give one of 'weight_bits'"),
        (
            {"layers": [{"pattern": "a", "weight_bits": 1}]},
            "'weight_bits' of the layers 'a' is '1'; expected a whole number from 2 to 8",
        ),
        (
            {"layers": [{"pattern": "a", "keep_float": True, "weight_bits": 8}]},
            "both 'keep_float' and 'weight_bits'",
        ),
        ({"weight_bits": 9}, "'weight_bits' is '9'; expected a whole number from 2 to 8"),
        ({"weight_bits": 8.0}, "'weight_bits' is '8.0'"),
        ({"first_last_bits": 1}, "'first_last_bits' is '1'; expected a whole number from 2 to 8"),
        ({"weight_bits": True}, "'weight_bits' is 'True'"),
        ({"activation_bits": 9}, "'9'; expected a whole number from 2 to 8 or none"),
        ({"granularity": "per-group"}, "expected 'per-channel' or 'per-tensor'"),
        ({"calibration": "minmax"}, "expected 'max' or 'mse'"),
        ({"symmetric": "yes"}, "expected 'false' or 'true'"),
        ({"symmetric": 1}, "'symmetric' is '1'"),
        ({"learn": "scales"}, "'learn' is 'scales'; expected one or more of 'none'"),
        ({"learn": []}, "'learn' is"),
        ({"learn": 3}, "'learn' is '3'"),
        ({"learn": ["none", "thresholds"]}, "'none' stands alone"),
        ({"learn": ["thresholds", "auto"]}, "'auto' stands alone"),
        ({"samples": 0}, "'samples' is '0'; expected a whole number of at least 1"),
        ({"batch_size": 2.5}, "'batch_size' is '2.5'"),
        ({"epochs": -1}, "'epochs' is '-1'"),
        ({"seed": -1}, "'seed' is '-1'"),
        ({"lr": 0}, "'lr' is '0'; expected a number above 0"),
        ({"lr": float("nan")}, "'lr' is 'nan'"),
        ({"max_minutes": "ten"}, "'max_minutes' is 'ten'"),
        ({"exclude": [""]}, "'exclude' is"),
        ({"exclude": 5}, "'exclude' is '5'"),
        ({"target": "int8"}, "'target' is 'int8'; expected 'cpu' or 'cpu-avx2' or 'int4'"),
        ({"activation_bits": "none", "learn": "thresholds"}, "'learn' = 'thresholds' and"),
        ({"learn": "codebooks"}, "'learn' = 'codebooks' needs layers with a codebook"),
        ({"codebook": 512}, "from 2 to 256 or auto or off"),
        ({"bias_centroids": 0}, "'bias_centroids' is '0'; expected a whole number from 1 to 256"),
        ({"layers": [{"pattern": "a", "codebook": "auto"}]}, "chooses over all layers"),
        ({"max_drop": 1, "max_size": 0.2}, "two goals of one search"),
        ({"max_drop": 1, "codebook": 16}, "a search chooses the count of each layer"),
        ({"max_drop": 0}, "'max_drop' is '0.0'; expected a number above 0"),
        ({"max_size": 1.5}, "'max_size' is '1.5'; expected a ratio between 0 and 1, or a whole"),
        ({"activation_bits": "none", "symmetric": True}, "'symmetric' and 'activation_bits' = "),
        ({"learn": "none", "epochs": 3}, "'learn' = 'none' and 'epochs' = '3'"),
        ({"learn": "none", "lr": 0.1}, "'learn' = 'none' and 'lr' = '0.1'"),
        ({"learn": "none", "optimizer": "sgd"}, "'learn' = 'none' and 'optimizer' = 'sgd'"),
        ({"learn": "none", "loss": "distillation"}, "'learn' = 'none' and 'loss' = 'distillation'"),
        ({"learn": "none", "augment": ["flip"]}, "'learn' = 'none' and 'augment' = 'flip' contr"),
        ({"learn": ["thresholds", "steps"]}, "since both learn the same ranges; remove one"),
        ({"learn": "weights", "bias_centroids": 4}, "'learn' = 'weights' and 'bias_centroids'"),
        (
            {"learn": "weights", "lr": {"steps": 0.1}},
            "a rate for 'steps', and 'learn' is 'weights'",
        ),
        ({"lr": {"scales": 0.1}}, "or such numbers of some of 'thresholds', 'steps', 'weights'"),
        ({"lr": {"weights": 0}}, "'lr' is .* expected a number above 0"),
        ({"lr": {}}, "'lr' is .* expected a number above 0"),
        ({"lr": "fast"}, "'lr' is 'fast'; expected a number above 0"),
        ({"optimizer": "lion"}, "'optimizer' is 'lion'; expected 'adam' or 'sgd'"),
        ({"loss": "mse"}, "'loss' is 'mse'; expected 'outputs' or 'distillation'"),
        ({"augment": "rotate"}, "'augment' is 'rotate'; expected one or more of 'none', 'flip'"),
        ({"augment": []}, "'augment' is empty; expected one or more of"),
        ({"augment": ["none", "flip"]}, "'augment' is 'none', 'flip'; 'none' stands alone"),
    ],
)
def test_bad_options_are_one_sentence(fields, message):
    with pytest.raises(RecipeError, match=message) as caught:
        recipe_from_fields(fields, "'r.toml'")
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_bad_files(tmp_path):
    with pytest.raises(RecipeError, match="Can't read the recipe"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "r.toml").write_text("a = = 3")
    with pytest.raises(RecipeError, match="Can't read the recipe"):
        load_recipe(tmp_path / "r.toml")
    (tmp_path / "deep.toml").write_text("x = " + "[" * 3000)
    with pytest.raises(RecipeError, match="Can't read the recipe"):
        load_recipe(tmp_path / "deep.toml")
    for text in ("{", "[" * 100_000):
        with pytest.raises(RecipeError, match="is not JSON"):
            Recipe.from_json(text)
    with pytest.raises(RecipeError, match="Expected a table"):
        Recipe.from_json("[]")
    with pytest.raises(OutputError, match="Can't write the recipe"):
        save_recipe(Recipe(), tmp_path / "no" / "r.toml")


def test_bad_values_in_python_are_caught_too():
    with pytest.raises(RecipeError, match="'layers' holds 'Conv'"):
        Recipe(layers=("Conv",))
    with pytest.raises(RecipeError, match="pattern of a layer is ''"):
        LayerOverride("", keep_float=True)
    with pytest.raises(RecipeError, match="'samples' is '0'"):
        dataclasses.replace(Recipe(), samples=0)


def test_overrides_are_merged_and_the_later_one_wins():
    recipe = Recipe(
        symmetric=True,
        layers=(
            LayerOverride("Conv", granularity="per-tensor", calibration="kl"),
            LayerOverride("/block1/*", calibration="max", symmetric=False),
        ),
    )
    assert recipe.override_for("/block1/conv", "Conv") == LayerOverride(
        "/block1/conv", 8, "per-tensor", False, False, "max", activation_bits=8
    )
    assert recipe.override_for("fc", "Gemm") == LayerOverride(
        "fc", 8, "per-channel", False, True, "mse", activation_bits=8
    )


def test_excluded_layers_and_those_kept_float_have_no_other_setting():
    recipe = Recipe(
        exclude=("head*",),
        layers=(LayerOverride("Gemm", keep_float=True), LayerOverride("*", weight_bits=7)),
    )
    assert recipe.override_for("head.1", "Conv") == LayerOverride("head.1", keep_float=True)
    assert recipe.override_for("fc", "Gemm") == LayerOverride("fc", keep_float=True)
    assert recipe.override_for("fc", "Conv").weight_bits == 7


def test_a_later_override_takes_a_layer_back_from_float():
    recipe = Recipe(
        layers=(LayerOverride("Conv", keep_float=True), LayerOverride("c1", keep_float=False))
    )
    assert recipe.override_for("c0", "Conv").keep_float is True
    assert recipe.override_for("c1", "Conv").keep_float is False


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [("conv_*", "Conv_12"), ("gem", "Gemm"), ("/block/con1", "/block/conv1"), ("zzz", None)],
)
def test_nearest_name(pattern, nearest):
    names = ["Gemm", "Conv_12", "/block/conv1"]
    found = nearest_name(pattern, names)
    assert found in names and (nearest is None or found == nearest)
    assert nearest_name(pattern, []) is None
