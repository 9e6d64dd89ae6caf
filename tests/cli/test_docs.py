from __future__ import annotations

import importlib

import click

import onnxq
from onnxq.cli import main
from onnxq.options.option import VERBS
from tools.make_cli_docs import PATH, RECIPES, cli_docs, recipe_docs


def test_docs_hold_the_help_text() -> None:
    assert PATH.read_text(encoding="utf-8") == cli_docs(), "run python -m tools.make_cli_docs"


def test_docs_hold_the_options_of_a_recipe() -> None:
    text = RECIPES.read_text(encoding="utf-8")
    assert "| `weight_bits` |" in text
    assert text == recipe_docs(text), "run python -m tools.make_cli_docs"


def test_every_option_has_help_text() -> None:
    for name in VERBS:
        command = main.get_command(click.Context(main), name)
        assert command.help
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{command.name} {parameter.name}"


def test_public_names_are_those_of_all() -> None:
    module = importlib.import_module("onnxq")
    for name in onnxq.__all__:
        assert hasattr(module, name)
        assert name in dir(module)
    assert not hasattr(module, "Silent")
    wanted = {"compress", "evaluate", "compare", "benchmark", "inspect", "Recipe", "LayerOverride"}
    assert wanted | {"Preprocess", "Result", "OnnxqError"} <= set(onnxq.__all__)
    errors = importlib.import_module("onnxq.errors")
    names = {n for n, v in vars(errors).items() if isinstance(v, type)}
    assert names <= set(onnxq.__all__)
