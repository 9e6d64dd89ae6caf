"""An option: its kind, range, default, help, group, and the commands that take it."""

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
        name: of the argument, and of the recipe's field.
        kind: of its values.
        help: what it does, in a sentence or two.
        default: its value where it is not given.
        verbs: the commands that take it.
        unset: the meaning of having no value, in a few words.
        flag: its flag without dashes, where it differs from the name.
        short: another flag of one letter.
        required: whether a command needs it.
        more: further text for `docs/recipes.md`.
        layers: its meaning for single layers of a recipe; '' where it has none.
        was: its name in older versions, which is still accepted.
        in_recipe: whether it is a field of recipes.
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
        """The flag without its dashes."""
        return self.flag or self.name.replace("_", "-")

    @property
    def shown_default(self) -> str:
        """The default as the command line shows it, or the meaning of having no value."""
        if self.default is None or self.default == ():
            return self.unset
        if isinstance(self.kind, Switch):
            return self.flag_name if self.default else self.kind.off
        return self.kind.shown(self.default)

    def check(self, value: Any, where: str = "") -> None:
        """Raises RecipeError where a value has the wrong type or range.

        Args:
            value: the option's value.
            where: its owner for the message, such as `of the layers 'conv*' `.
        """
        if not self.kind.fits(value):
            found = (listed(value) or "empty") if isinstance(value, tuple) else f"'{value}'"
            raise RecipeError(
                f"The option '{self.name}' {where}is {found}; expected {self.kind.expected}."
            )

    def for_layers(self) -> Option:
        """The option of a single layer, where None means the recipe's own value."""
        if not isinstance(self.kind, Whole):
            return self
        words = {word: value for word, value in self.kind.words.items() if value is not None}
        return replace(self, kind=replace(self.kind, words=words))


@dataclass(frozen=True)
class RecipeOption(Option):
    """A recipe's option; rows of the same name for other commands differ in their help alone."""

    in_recipe: bool = True


def group(title: str, *options: Option) -> tuple[Option, ...]:
    """The options under one heading."""
    return tuple(replace(option, group=title) for option in options)
