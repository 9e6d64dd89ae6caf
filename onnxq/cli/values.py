"""The kinds of values that options of a recipe take and click does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click


class NumberOr(click.ParamType[int | str | None]):
    """A whole number, or one of some words.

    Args:
        what: what is counted, for the error.
        words: what each word stands for.
    """

    name = "number"

    def __init__(self, what: str, words: Mapping[str, str | None]) -> None:
        self._what, self._words = what, words

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str | None:
        """The number, or what the word stands for."""
        if value is None or isinstance(value, int):
            return value
        word = str(value).lower()
        if word in self._words:
            return self._words[word]
        if not word.isdecimal():
            words = " or ".join(f"'{each}'" for each in self._words)
            self.fail(f"'{value}' is neither a number of {self._what} nor {words}", param, ctx)
        return int(word)


class FileSize(click.ParamType[float | int]):
    """Bytes, as in `150000`, or a ratio, as in `0.2` or `20%`."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | int:
        """A whole number of bytes, or a ratio."""
        text = str(value)
        try:
            if text.endswith("%"):
                return float(text[:-1]) / 100
            return int(text) if text.isdecimal() else float(text)
        except ValueError:
            self.fail(f"'{value}' is neither a number of bytes nor a ratio such as 0.2", param, ctx)


class KindNumber(click.ParamType[tuple[str, float]]):
    """A number for one kind, as in `weights=0.001`.

    Args:
        example: one, for the error.
        or_all: whether a number alone will do; its kind is ''.
    """

    name = "kind=number"

    def __init__(self, example: str, *, or_all: bool = False) -> None:
        self._example, self._or_all = example, or_all

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        """The kind and the number."""
        if isinstance(value, tuple):
            return value[0], value[1]
        kind, found, number = str(value).rpartition("=")
        try:
            if bool(kind) != bool(found) or not (kind or self._or_all):
                raise ValueError
            return kind, float(number)
        except ValueError:
            wanted = "neither a number nor" if self._or_all else "not"
            self.fail(
                f"'{value}' is {wanted} a kind and a number such as {self._example}", param, ctx
            )


def by_kind(
    ctx: click.Context, param: click.Parameter, given: tuple[tuple[str, float], ...]
) -> float | dict[str, float]:
    """The numbers of an option that may be given for several kinds, or the one for all.

    Raises:
        click.BadParameter: a kind has two numbers, or one for all stands beside others.
    """
    numbers: dict[str, float] = {}
    for kind, number in given:
        if kind in numbers:
            raise click.BadParameter(f"given twice for {kind or 'all'}; give it once", ctx, param)
        numbers[kind] = number
    if "" in numbers and len(numbers) > 1:
        text = "given for all and for single kinds; give one or the other"
        raise click.BadParameter(text, ctx, param)
    return numbers.get("", numbers)
