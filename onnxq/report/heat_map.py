"""Numbers of layers by settings as coloured cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxq.report.text import number_text
from onnxq.search.table import Effect, Row, Setting, SweepTable

PALE, DEEP = (240, 245, 250), (16, 56, 104)
"""Colours of the least and of the greatest value, RGB."""

DARK = 0.45
"""Share of the scale from which a cell is dark enough for white text."""

MOST_DECADES, LEAST_DECADES = 6, 2
"""Decades below the greatest value on the scale; whatever is smaller is pale."""

LONGEST_NAME = 36
"""Characters of a layer's name in a picture; its end tells layers apart."""


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: its number.
        title: everything that is known about it.
        colour: as CSS has it.
        dark: whether the text on it is white.
    """

    text: str
    title: str
    colour: str
    dark: bool


@dataclass(frozen=True)
class HeatMap:
    """Rows of cells, None where a layer lacks a setting."""

    columns: list[str]
    rows: list[tuple[str, list[Cell | None]]]


def heat_map(table: SweepTable, value: Callable[[Effect], float]) -> HeatMap:
    """The value of each setting of each layer, coloured on a logarithmic scale."""
    settings = table.settings
    values = [value(row.effects[s]) for row in table.rows for s in settings if s in row.effects]
    scale = _scale(values)
    return HeatMap(
        columns=[setting.label for setting in settings],
        rows=[(shortened(row.name), [_cell(row, s, value, scale) for s in settings])
              for row in table.rows],
    )  # fmt: skip


def shortened(name: str) -> str:
    """A layer's name as a picture has room for."""
    return name if len(name) <= LONGEST_NAME else "…" + name[-LONGEST_NAME + 1 :]


def described(row: Row, setting: Setting) -> str:
    """One effect in words."""
    effect = row.effects[setting]
    drop = "" if effect.drop is None else f", drop {effect.drop:.2f} ± {effect.drop_error:.2f}"
    return f"{row.name}, {setting.label}: {number_text(effect.error)}{drop}, {effect.size:,} bytes"


def blend(share: float) -> str:
    """The colour at a share of the scale, 0 pale to 1 deep."""
    channels = (round(a + share * (b - a)) for a, b in zip(PALE, DEEP, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def _scale(values: Sequence[float]) -> tuple[float, float]:
    """The logarithms between which colours run."""
    positive = [math.log10(each) for each in values if each > 0]
    high = max(positive, default=0.0)
    low = min(positive, default=0.0)
    return min(max(low, high - MOST_DECADES), high - LEAST_DECADES), high


def _cell(
    row: Row, setting: Setting, value: Callable[[Effect], float], scale: tuple[float, float]
) -> Cell | None:
    if setting not in row.effects:
        return None
    number = value(row.effects[setting])
    low, high = scale
    share = (math.log10(number) - low) / max(high - low, 1e-9) if number > 0 else 0.0
    share = min(max(share, 0.0), 1.0)
    text = number_text(number, 2) if number else "0"
    return Cell(text, described(row, setting), blend(share), share > DARK)
