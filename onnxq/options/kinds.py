"""The kinds of option values: how each is parsed, checked and described."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any


def spelt(value: Any) -> str:
    """A value as TOML spells it; None, which TOML does not have, is 'none'."""
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def listed(values: Iterable[Any]) -> str:
    """Values in quotes, one after the other."""
    return ", ".join(f"'{spelt(value)}'" for value in values)


def nearest_name(pattern: str, names: Iterable[str]) -> str | None:
    """The name most similar to a pattern that matches nothing; None where there are no names."""
    folded = {name.lower(): name for name in reversed(list(names))}
    close = get_close_matches(pattern.lower().strip("*?"), folded, n=1, cutoff=0.0)
    return folded[close[0]] if close else None


def matches(pattern: str, node_name: str, op_type: str) -> bool:
    """Whether a glob matches a node's name or its op type; case counts."""
    return fnmatchcase(node_name, pattern) or fnmatchcase(op_type, pattern)


@dataclass(frozen=True)
class Kind:
    """The values of an option.

    Attributes:
        metavar: the placeholder for a value in the help text.
        several: whether the option may be given more than once.
    """

    metavar: str = ""
    several: bool = False

    @property
    def expected(self) -> str:
        """The expected values, for error messages about a recipe."""
        return ""

    @property
    def typed(self) -> str:
        """The expected text, for error messages about the command line."""
        return self.expected

    @property
    def described(self) -> str:
        """The values, for a Markdown table."""
        return self.expected

    def fits(self, value: Any) -> bool:
        """Whether a value is in range and of the right type."""
        return True

    def parse(self, text: str) -> Any:
        """The value of a text; raises ValueError where it is none."""
        return text

    def combine(self, values: tuple[Any, ...]) -> Any:
        """One value from several; raises ValueError where they contradict each other."""
        return values

    def from_toml(self, value: Any) -> Any:
        """A recipe's value from one of TOML or JSON; a wrong value is returned unchanged."""
        return value

    def to_toml(self, value: Any) -> Any:
        """The inverse of `from_toml`."""
        return value

    def shown(self, value: Any) -> str:
        """A default as the command line shows it."""
        return spelt(value)


@dataclass(frozen=True)
class Switch(Kind):
    """On or off; `off` is the flag that switches off, '' where there is none."""

    off: str = ""
    expected = "'false' or 'true'"
    described = "true, false"

    def fits(self, value: Any) -> bool:
        """A boolean; 0 and 1 are none."""
        return isinstance(value, bool)


@dataclass(frozen=True)
class Count(Kind):
    """The number of times that a flag is given."""

    def shown(self, value: Any) -> str:
        """'': the default, never, is not shown."""
        return ""


@dataclass(frozen=True)
class File(Kind):
    """A path."""

    metavar: str = "FILE"


@dataclass(frozen=True)
class Choice(Kind):
    """One of some words; where there may be several, 'none' and 'auto' have to be alone."""

    words: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """The words."""
        one = " or ".join(f"'{each}'" for each in self.words)
        return f"one or more of {listed(self.words)}" if self.several else one

    def fits(self, value: Any) -> bool:
        """A word, or a tuple of at least one."""
        if not self.several:
            return isinstance(value, str) and value in self.words
        return isinstance(value, tuple) and bool(value) and all(e in self.words for e in value)

    def from_toml(self, value: Any) -> Any:
        """Several words as a tuple; a single word may stand without a list."""
        return _as_tuple(value) if self.several else value

    def to_toml(self, value: Any) -> Any:
        """Several words as a list."""
        return list(value) if self.several else value

    def shown(self, value: Any) -> str:
        """The words."""
        return ", ".join(value) if self.several else str(value)

    @property
    def described(self) -> str:
        """Each in quotes."""
        words = ", ".join(f'"{each}"' for each in self.words)
        return f"{words}, or a list" if self.several else words


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number from `low` to `high`, or one of some words that stand for a value."""

    metavar: str = "N"
    low: int = 1
    high: int | None = None
    words: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def expected(self) -> str:
        """The range, and the words."""
        upward = self.high is None
        limits = f"of at least {self.low}" if upward else f"from {self.low} to {self.high}"
        return " or ".join([f"a whole number {limits}", *self.words])

    def fits(self, value: Any) -> bool:
        """An int, not 8.0 and not True, or the value of a word."""
        if type(value) is not int:
            return value in self.words.values()
        return self.low <= value and (self.high is None or value <= self.high)

    def parse(self, text: str) -> int | str | None:
        """The number, or the value of the word."""
        word = text.lower()
        return self.words[word] if word in self.words else int(text)

    def from_toml(self, value: Any) -> Any:
        """The value of a word; a number unchanged."""
        return self.words[value] if isinstance(value, str) and value in self.words else value

    def to_toml(self, value: Any) -> Any:
        """The word 'none' for None."""
        return "none" if value is None and "none" in self.words else value

    @property
    def described(self) -> str:
        """The range, then the words in quotes."""
        limits = f"≥ {self.low}" if self.high is None else f"{self.low} to {self.high}"
        return ", ".join([limits, *(f'"{word}"' for word in self.words)])


@dataclass(frozen=True)
class Positive(Kind):
    """A finite number above 0."""

    metavar: str = "X"
    expected = "a number above 0"
    described = "> 0"

    def fits(self, value: Any) -> bool:
        """An int or a float."""
        return type(value) in (int, float) and 0 < value < float("inf")

    def parse(self, text: str) -> float:
        """The number, whatever its sign."""
        return float(text)

    def from_toml(self, value: Any) -> Any:
        """A float, so that equal recipes are written alike."""
        return float(value) if type(value) is int else value


@dataclass(frozen=True)
class Size(Kind):
    """Bytes, as in `150000`, or a ratio, as in `0.2` or, typed, `20%`."""

    metavar: str = "BYTES|RATIO"
    expected = "a ratio between 0 and 1, or a whole number of bytes"
    described = "a ratio below 1, or bytes"

    def fits(self, value: Any) -> bool:
        """A float between 0 and 1, or an int above 1."""
        return (type(value) is float and 0 < value < 1) or (type(value) is int and value > 1)

    def parse(self, text: str) -> float | int:
        """A whole number of bytes, or a ratio."""
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.isdecimal() else float(text)


@dataclass(frozen=True)
class Numbers(Kind):
    """A number for each of some names, as in `weights=0.001`, or one for all.

    Attributes:
        names: the names.
        zero: whether a number may be 0.
        for_all: whether a single number for all is allowed.
    """

    metavar: str = "KIND=X"
    several: bool = True
    names: tuple[str, ...] = ()
    zero: bool = False
    for_all: bool = False

    @property
    def expected(self) -> str:
        """The range, and the names."""
        number = "of at least 0" if self.zero else "above 0"
        one = f"a number {number}, or such numbers" if self.for_all else f"numbers {number}"
        return f"{one} of some of {listed(self.names)}"

    def fits(self, value: Any) -> bool:
        """A mapping from names to numbers, or a number."""
        if self.for_all and not isinstance(value, dict):
            return Positive().fits(value)
        return (
            isinstance(value, dict)
            and (bool(value) or not self.for_all)
            and all(k in self.names and self._fits(v) for k, v in value.items())
        )

    @property
    def typed(self) -> str:
        """As the command line takes them."""
        one = f"a kind and a number such as {self.names[-1]}=0.5"
        return f"a number, or {one}" if self.for_all else one

    def parse(self, text: str) -> tuple[str, float]:
        """A name and its number; the name is '' where the number is for all."""
        name, found, number = text.rpartition("=")
        if bool(name) != bool(found) or not (name or self.for_all):
            raise ValueError(text)
        return name, float(number)

    def combine(self, values: tuple[tuple[str, float], ...]) -> Any:
        """The numbers by name, or the one for all; None where there are none."""
        numbers: dict[str, float] = {}
        for name, number in values:
            if name in numbers:
                raise ValueError(f"given twice for {name or 'all'}; give it once")
            numbers[name] = number
        if "" in numbers and len(numbers) > 1:
            raise ValueError("given for all and for single kinds; give one or the other")
        return numbers.get("", numbers or None)

    @property
    def described(self) -> str:
        """The names, and what a number may be."""
        number = "≥ 0" if self.zero else "> 0"
        names = ", ".join(f"`{name}`" for name in self.names)
        table = f"a table of {names}, each {number}"
        return f"{number}, or {table}" if self.for_all else table

    def _fits(self, value: Any) -> bool:
        return Positive().fits(value) or (self.zero and type(value) in (int, float) and value == 0)


@dataclass(frozen=True)
class Patterns(Kind):
    """Globs on the names of nodes or their op types."""

    metavar: str = "PATTERN"
    expected = "a list of globs on node names or op types"
    several: bool = True
    described = "a list of patterns"

    def fits(self, value: Any) -> bool:
        """A tuple of non-empty texts."""
        return isinstance(value, tuple) and all(isinstance(e, str) and e for e in value)

    def from_toml(self, value: Any) -> Any:
        """A tuple; a single pattern may stand without a list."""
        return _as_tuple(value)

    def to_toml(self, value: Any) -> Any:
        """A list."""
        return list(value)


@dataclass(frozen=True)
class Layers(Kind):
    """Settings of single layers; not on the command line."""

    expected = "a list"

    def fits(self, value: Any) -> bool:
        """A tuple, whose items the recipe checks."""
        return isinstance(value, tuple)


@dataclass(frozen=True)
class Channels(Kind):
    """A number for each channel of an image."""

    metavar: str = "R,G,B"
    expected = "a list of numbers such as 0.485,0.456,0.406"

    def parse(self, text: str) -> tuple[float, ...]:
        """The numbers."""
        return tuple(float(part) for part in text.split(","))


@dataclass(frozen=True)
class Sides(Kind):
    """One length in pixels, or height and width."""

    metavar: str = "N"
    expected = "a length in pixels or height,width"

    def parse(self, text: str) -> int | tuple[int, ...]:
        """The length, or both."""
        sides = tuple(int(part) for part in text.split(","))
        if len(sides) > 2 or min(sides) < 0:
            raise ValueError(text)
        return sides[0] if len(sides) == 1 else sides


@dataclass(frozen=True)
class Shapes(Kind):
    """Shapes of inputs by name."""

    metavar: str = "NAME=D,D,..."
    expected = "a shape such as input=1,3,224,224"
    several: bool = True

    def parse(self, text: str) -> tuple[str, tuple[int, ...]]:
        """The name and the shape."""
        name, _, shape = text.rpartition("=")
        dims = tuple(int(part) for part in shape.split(",") if part.strip())
        if not name or any(dim < 0 for dim in dims):
            raise ValueError(text)
        return name, dims

    def combine(self, values: tuple[tuple[str, tuple[int, ...]], ...]) -> Any:
        """By name."""
        return dict(values)


def _as_tuple(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value
