"""Commands with options from the table: flags, help text in groups, recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from onnxq.options.kinds import Choice, Count, File, Kind, Switch
from onnxq.options.option import Option
from onnxq.options.recipe import Recipe, load_recipe, stated_options
from onnxq.options.table import FIRST, RECIPE, RENAMED, options_of

PATH = click.Path(path_type=Path)
"""A path, which click doesn't check: a wrong one is a user error with exit code 1."""

SHORT_HELP = 20
"""Options that a help text lists under one heading at most."""


class TableCommand(click.Command):
    """A command that shows its options in groups and accepts their older names."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Click's own parsing, with a line on stderr for each older name."""
        end = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [*map(_renamed, args[:end]), *args[end:]])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups of options; before them, those that most people need."""
        options = options_of(self.name or "")
        rows = {param.name: param.get_help_record(ctx) for param in self.params}
        names = {option.name for option in options}
        first = [name for name in FIRST if names.issuperset(FIRST)]
        groups = {"Most used": [rows[name] for name in first]} if first else {}
        for option in options:
            if option.name not in first:
                title = option.group if len(options) > SHORT_HELP else "Options"
                groups.setdefault(title, []).append(rows[option.name])
        if help_option := self.get_help_option(ctx):
            groups[title].append(help_option.get_help_record(ctx))
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(list(filter(None, records)))


class KindType(click.ParamType[Any]):
    """An option's kind as click's type; ranges of recipe options are checked with the recipe."""

    def __init__(self, option: Option) -> None:
        self._option, self.name = option, option.kind.metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value of a text; a default is returned unchanged."""
        if not isinstance(value, str):
            return value
        kind = self._option.kind
        try:
            found = kind.parse(value)
            if not self._option.in_recipe and not kind.fits(found):
                raise ValueError
        except ValueError:
            self.fail(f"'{value}' is not {kind.typed}", param, ctx)
        return found


def table_command(verb: str) -> Callable[[Callable[..., None]], click.Command]:
    """A decorator for the command of that name, with its options; declare arguments below it."""
    return click.command(verb, cls=TableCommand, params=[*map(_parameter, options_of(verb))])


def recipe_from_flags(ctx: click.Context) -> Recipe:
    """The recipe of `--recipe`, or the default one, with the flags that were given.

    Raises:
        RecipeError: the file can't be read, or an option is out of range.
    """
    file = ctx.params.get("recipe_file")
    base = Recipe() if file is None else load_recipe(file)
    return dataclasses.replace(base, **{name: ctx.params[name] for name in _given(ctx)})


def option_sources(ctx: click.Context) -> dict[str, str]:
    """Where the value of each option comes from, by name: 'flag', 'recipe', or 'default'."""
    file = ctx.params.get("recipe_file")
    stated = frozenset[str]() if file is None else stated_options(file)
    found = {name: "recipe" if name in stated else "default" for name in RECIPE}
    return found | dict.fromkeys(_given(ctx), "flag")


def _given(ctx: click.Context) -> list[str]:
    """Names of the recipe's options that were given as flags."""
    source = ctx.get_parameter_source
    return [name for name in RECIPE if source(name) is ParameterSource.COMMANDLINE]


def _parameter(option: Option) -> click.Option:
    kind, flag = option.kind, f"--{option.flag_name}"
    settings: dict[str, Any] = {"multiple": kind.several, "metavar": kind.metavar or None}
    if option.default is not None:
        settings["default"] = option.default
    if isinstance(kind, Switch):
        flag = f"{flag}/--{kind.off}" if kind.off else flag
        settings["is_flag"] = True
    elif isinstance(kind, Count):
        settings["count"] = True
    elif isinstance(kind, File):
        settings["type"] = PATH
    elif isinstance(kind, Choice):
        settings["type"] = click.Choice(kind.words)
    else:
        settings["type"] = KindType(option)
        settings["callback"] = _combining(kind) if kind.several else None
    return click.Option(
        [*([f"-{option.short}"] if option.short else []), flag, option.name],
        help=_help_text(option),
        required=option.required,
        **settings,
    )


def _help_text(option: Option) -> str:
    repeat = " May be given more than once." if option.kind.several else ""
    shown = f"  [default: {option.shown_default}]" if option.shown_default else ""
    return option.help + repeat + shown


def _combining(kind: Kind) -> Callable[[click.Context, click.Parameter, tuple[Any, ...]], Any]:
    """A callback that combines the given values to one; a usage error where that fails."""

    def combine(ctx: click.Context, param: click.Parameter, values: tuple[Any, ...]) -> Any:
        try:
            return kind.combine(values)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    return combine


def _renamed(argument: str) -> str:
    """An argument with the current flag in place of an older one."""
    flag, found, value = argument.partition("=")
    for old, new in RENAMED.items():
        for prefix in ("--", "--no-"):
            if flag == prefix + old:
                click.echo(f"note: {flag} is now called {prefix}{new}", err=True)
                return f"{prefix}{new}{found}{value}"
    return argument
