"""Settings name exactly one layer, whatever characters its name has."""

from hypothesis import given
from hypothesis import strategies as st

from onnxq.recipe import Recipe
from onnxq.search.table import FLOAT, Setting

NAMES = st.text("ab*?[]!/.", min_size=1, max_size=6)


@given(name=NAMES, other=NAMES)
def test_an_override_matches_its_layer_alone(name, other):
    override = Setting(codebook=16).override(name)
    assert override.matches(name, "Conv")
    assert other == name or not override.matches(other, "Conv")


def test_settings_become_what_a_recipe_means():
    settings = {"a": Setting(codebook=8), "b": Setting(weight_bits=7), "c": FLOAT}
    layers = tuple(setting.override(name) for name, setting in settings.items())
    recipe = Recipe(codebook=32, layers=layers)
    found = {name: recipe.override_for(name, "Conv") for name in "abcd"}
    assert (found["a"].codebook, found["d"].codebook) == (8, 32)
    assert (found["b"].codebook, found["b"].weight_bits) == (None, 7)
    assert found["c"].keep_float and not found["b"].keep_float
    assert [s.label for s in settings.values()] == ["K=8", "7 bits", "float"]
