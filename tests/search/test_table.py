"""Settings name exactly one layer, whatever characters its name has."""

from hypothesis import given
from hypothesis import strategies as st

from onnxq.options.recipe import Recipe
from onnxq.search.table import FLOAT, Effect, Row, Setting, SweepTable


def test_kinds_are_told_apart_from_coarse_to_fine():
    effects = {
        Setting(weight_bits=8): Effect(9, 1.0),
        Setting(codebook=16): Effect(5, 2.0),
        FLOAT: Effect(32, 0.0),
        Setting(weight_bits=2): Effect(3, 9.0),
        Setting(codebook=4): Effect(2, 8.0),
    }
    table = SweepTable((Row(("a",), 9, effects),), "kl", 4)
    labels = {kind: [s.label for s in found] for kind, found in table.kinds.items()}
    assert labels == {"codebooks": ["K=4", "K=16"], "codes": ["2 bits", "8 bits"]}
    widths = {s: e for s, e in effects.items() if s.codebook is None}
    assert list(SweepTable((Row(("a",), 9, widths),), "kl", 4).kinds) == ["codes"]
    assert SweepTable.from_fields(table.to_fields()) == table


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
