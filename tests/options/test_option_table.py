from __future__ import annotations

import dataclasses

import pytest

from onnxq.options.contradictions import CONTRADICTIONS, HOW_TO_LEARN, NEEDS, OF_DISTILLATION
from onnxq.options.kinds import Choice, Numbers, Shapes, Sides, Size, Switch, Whole
from onnxq.options.option import VERBS
from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.options.table import FIRST, OPTIONS, RECIPE, SETTINGS, options_of


def test_the_table_holds_the_fields_of_a_recipe_and_of_its_layers() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(Recipe)}
    assert fields == {name: option.default for name, option in RECIPE.items()}
    layers = {field.name for field in dataclasses.fields(LayerOverride)}
    assert layers == {"pattern", *SETTINGS}


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_has_each_option_and_each_flag_once(verb: str) -> None:
    options = options_of(verb)
    flags = [option.flag_name for option in options]
    flags += [o.kind.off for o in options if isinstance(o.kind, Switch) and o.kind.off]
    assert len(set(flags)) == len(flags)
    assert len({option.name for option in options}) == len(options)


def test_what_most_people_need_is_ten_options_of_compress() -> None:
    assert len(set(FIRST)) == 10
    assert {option.name for option in options_of("compress")}.issuperset(FIRST)


def test_defaults_are_of_their_kind() -> None:
    for option in OPTIONS:
        assert option.default is None or option.kind.fits(option.default), option.name


def test_rules_name_options_of_a_recipe() -> None:
    named = {each.name for rule in (*CONTRADICTIONS, *NEEDS) for each in rule[:2]}
    assert named | {*HOW_TO_LEARN, *OF_DISTILLATION} <= set(RECIPE)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Whole(low=2, high=8, words={"none": None}), "None", None),
        (Whole(low=2, high=8), "9", 9),
        (Size(), "20%", 0.2),
        (Size(), "150000", 150_000),
        (Size(), "0.5", 0.5),
        (Numbers(names=("a", "b")), "a=0.5", ("a", 0.5)),
        (Numbers(names=("a", "b"), for_all=True), "0.5", ("", 0.5)),
        (Sides(), "256", 256),
        (Sides(), "224,320", (224, 320)),
        (Shapes(), "x=1,3", ("x", (1, 3))),
        (Shapes(), "x=", ("x", ())),
    ],
)
def test_texts_are_read(kind, text, value) -> None:
    assert kind.parse(text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Whole(), "2.5"),
        (Whole(), "few"),
        (Size(), "small"),
        (Numbers(names=("a",)), "0.5"),
        (Numbers(names=("a",), for_all=True), "=0.5"),
        (Sides(), "1,2,3"),
        (Sides(), "-4"),
        (Shapes(), "1,3"),
        (Shapes(), "x=1,-3"),
    ],
)
def test_texts_that_are_no_value_are_refused(kind, text) -> None:
    with pytest.raises(ValueError):
        kind.parse(text)


def test_a_choice_of_several_is_a_tuple_of_its_words() -> None:
    kind = Choice(several=True, words=("a", "b"))
    assert kind.from_toml("a") == ("a",)
    assert kind.from_toml(["a", "b"]) == ("a", "b")
    assert [kind.fits(each) for each in (("b",), (), "a", ("c",))] == [True, False, False, False]
