"""What is said of an option: its kind, range, default, help, group, and who takes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from onnxq.errors import RecipeError
from onnxq.options.kinds import Kind, Switch, Whole, listed

VERBS = ("compress", "inspect", "evaluate", "compare", "benchmark", "sensitivity", "distill")
"""The commands, in the order of the help text."""
COMPRESS, INSPECT, EVALUATE, COMPARE, BENCHMARK, SENSITIVITY, DISTILL = VERBS


@dataclass(frozen=True)
class Option:
    """One option of some commands.

    Attributes:
        name: the argument's, and the field's of a recipe.
        kind: what values it takes.
        help: what it says or does, in a sentence or two.
        default: its value where it is not given.
        verbs: the commands that take it.
        unset: what it means that there is no value, in a few words.
        flag: its flag without dashes, where that is not the name.
        short: another flag of one letter.
        required: whether a command can't go without.
        more: what `docs/recipes.md` says besides.
        layers: what it means where a recipe has it for single layers; empty: it hasn't.
        was: its name in older versions, which is still taken.
        in_recipe: whether it is a recipe's.
        group: its heading in the help text.
    """

    name: str
    kind: Kind
    help: str
    default: Any = None
    verbs: tuple[str, ...] = (COMPRESS,)
    unset: str = ""
    flag: str = ""
    short: str = ""
    required: bool = False
    more: str = ""
    layers: str = ""
    was: str = ""
    in_recipe: bool = False
    group: str = ""

    @property
    def flag_name(self) -> str:
        """The flag without dashes before it."""
        return self.flag or self.name.replace("_", "-")

    @property
    def shown_default(self) -> str:
        """The default as the command line takes it, or what happens without a value."""
        if self.default is None or self.default == ():
            return self.unset
        if isinstance(self.kind, Switch):
            return self.flag_name if self.default else self.kind.off
        return self.kind.shown(self.default)

    def check(self, value: Any, where: str = "") -> None:
        """Raises RecipeError where a value is of the wrong kind or range.

        Args:
            value: what the option was set to.
            where: whose option it is, as `of the layers 'conv*' `.
        """
        if not self.kind.fits(value):
            found = (listed(value) or "empty") if isinstance(value, tuple) else f"'{value}'"
            raise RecipeError(
                f"The option '{self.name}' {where}is {found}; expected {self.kind.expected}."
            )

    def for_layers(self) -> Option:
        """The same for a single layer, where None leaves the recipe's own value."""
        if not isinstance(self.kind, Whole):
            return self
        words = {word: value for word, value in self.kind.words.items() if value is not None}
        return replace(self, kind=replace(self.kind, words=words))


@dataclass(frozen=True)
class RecipeOption(Option):
    """An option of recipes, as they check it; other rows of the name differ in their help alone."""

    in_recipe: bool = True


def group(title: str, *options: Option) -> tuple[Option, ...]:
    """The options under one heading."""
    return tuple(replace(option, group=title) for option in options)
