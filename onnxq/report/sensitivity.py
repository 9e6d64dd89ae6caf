"""The table of a sensitivity sweep as JSON, CSV and HTML with a heat map."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxq import __version__
from onnxq.errors import OutputError
from onnxq.report.html import cannot_write, make_folder, template
from onnxq.report.sections import Chart, Line, make_chart
from onnxq.report.text import number_text, size_text
from onnxq.runtime.temporary import write_whole
from onnxq.search.goal import find_frontier
from onnxq.search.table import FLOAT, TITLES, Effect, Row, Setting, SweepTable

PALE, DEEP = (240, 245, 250), (16, 56, 104)
"""Colours of the least and of the greatest value, RGB."""

DARK = 0.45
"""Share of the scale from which a cell is dark enough for white text."""

MOST_DECADES, LEAST_DECADES = 6, 2
"""Decades below the greatest value on the scale; whatever is smaller is pale."""

LONGEST_NAME = 36
"""Most characters of a layer's name in a chart; the end is kept, where names differ."""


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: its number.
        title: the tooltip with all measurements.
        colour: as in CSS.
        dark: whether the text is white.
    """

    text: str
    title: str
    colour: str
    dark: bool


@dataclass(frozen=True)
class HeatMap:
    """Rows of cells; a cell is None where a layer lacks a setting."""

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
    """A layer's name, shortened for a chart."""
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


PAGE, JSON, CSV = "sensitivity.html", "sensitivity.json", "sensitivity.csv"
"""The files in the folder of a report."""

MOST_POINTS = 200
"""Points of the frontier in its picture."""

UNIFORM = {
    "codebooks": ("one codebook size for all layers", "#c2571a"),
    "codes": ("one bit width for all layers", "#2d7a46"),
}
"""What one setting for all layers is called in the picture of the frontier, and its colour."""

PALEST = 0.25
"""Share of the colours below which a line is hard to see on white."""


def write_table(path: Path, table: SweepTable) -> None:
    """Write the table as JSON.

    Raises:
        OutputError: the file can't be written.
    """
    try:
        write_whole(path, _json(table).encode())
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"Can't write the table to '{path}' ({reason}); name another file with -o."
        ) from error


def write_pictures(folder: Path, model: Path, table: SweepTable) -> None:
    """Write the page, the JSON and the CSV into a folder, which is created if needed.

    Raises:
        OutputError: the folder can't be written.
    """
    make_folder(folder)
    texts = {PAGE: render(model, table), JSON: _json(table), CSV: _csv(table)}
    try:
        for name, text in texts.items():
            write_whole(folder / name, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise cannot_write(folder, error) from error


def render(model: Path, table: SweepTable) -> str:
    """The HTML text; it loads nothing from elsewhere."""
    return template("sensitivity.html.j2").render(
        version=__version__,
        model=model.name,
        samples=table.samples,
        made=table.synthetic,
        notes=table.notes,
        measure=TITLES[table.measure],
        errors=heat_map(table, lambda effect: effect.error),
        drops=drop_map(table),
        layers=layer_chart(table),
        frontier=frontier_chart(table),
    )


def drop_map(table: SweepTable) -> HeatMap | None:
    """The estimated drops, points; None where the outputs are no decisions."""
    if table.measure != "kl":
        return None
    return heat_map(table, lambda effect: effect.drop or 0.0)


def layer_chart(table: SweepTable) -> Chart | None:
    """Error over bytes, a line per layer and kind, darker towards the end of the model."""
    lines = []
    for number, row in enumerate(table.rows):
        colour = blend(PALEST + (1 - PALEST) * number / max(len(table.rows) - 1, 1))
        for kind, settings in table.kinds.items():
            drawn = [s for s in settings if s in row.effects and row.effects[s].error > 0]
            points = [(float(row.effects[s].size), row.effects[s].error) for s in drawn]
            dots = [described(row, s) for s in drawn]
            lines.append(Line(row.name, points, colour, dots, dashed=kind == "codes"))
    return make_chart(lines) if any(line.points for line in lines) else None


def frontier_chart(table: SweepTable) -> Chart | None:
    """The least sum of errors over the sum of bytes, and one setting for all layers."""
    found = find_frontier([row.effects for row in table.rows])
    drawn = np.flatnonzero(found.errors > 0)
    if not drawn.size:
        return None
    drawn = drawn[np.unique(np.linspace(0, drawn.size - 1, MOST_POINTS).astype(np.int64))]
    best = [(float(found.sizes[i]), float(found.errors[i])) for i in drawn]
    lines = [Line("the best setting of each layer", best, blend(1.0))]
    for kind, settings in table.kinds.items():
        name, colour = UNIFORM[kind]
        points, dots = uniform_points(table, settings)
        lines.append(Line(name, points, colour, dots, dashed=kind == "codes"))
    return make_chart(lines)


def uniform_points(
    table: SweepTable, settings: Sequence[Setting]
) -> tuple[list[tuple[float, float]], list[str]]:
    """(bytes, error) with one setting for all layers; a layer that lacks it has its widest."""
    points, names = [], []
    for setting in settings:
        chosen = [row.effects.get(setting) or _widest(row.effects) for row in table.rows]
        size, error = sum(e.size for e in chosen), sum(e.error for e in chosen)
        if error > 0:
            points.append((float(size), error))
            names.append(f"{setting.label}: {size_text(size)}, {error:.3g}")
    return points, names


def _widest(effects: Mapping[Setting, Effect]) -> Effect:
    """The setting of least error, except float."""
    return min((e for s, e in effects.items() if s != FLOAT), key=lambda effect: effect.error)


def _json(table: SweepTable) -> str:
    return json.dumps(table.to_fields(), sort_keys=True, indent=1) + "\n"


def _csv(table: SweepTable) -> str:
    """One line per layer and setting."""
    text = io.StringIO()
    names = ("layer", "parameters", "setting", "bytes", table.measure, "drop", "drop_error")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in table.rows:
        for setting, e in row.effects.items():
            fields = (setting.label, e.size, e.error, e.drop, e.drop_error)
            writer.writerow((" ".join(row.layers), row.parameters, *fields))
    return text.getvalue()
