"""Sections of the report and their charts: training, search, synthetic images."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw

from onnxq.report.text import size_text
from onnxq.synthesise.images import Synthesis
from onnxq.verify.metrics import Metrics

WIDTH, HEIGHT = 640, 320
"""Of the plotting area, pixels."""

MOST_TICKS = 9
"""Ticks of an axis; of more, whole decades alone are kept."""

MARGIN = 1.15
"""Factor by which a logarithmic axis goes beyond the points."""

LEAST_SPAN = 1e-9
"""Of a linear axis, where all points are one."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of a chart, with a dot at each point.

    Attributes:
        name: its label.
        points: (x, y), both above zero where axes are logarithmic.
        colour: as in CSS.
        dots: tooltip of each dot; empty for a line without dots.
        dashed: whether the line is dashed.
    """

    name: str
    points: Sequence[Point]
    colour: str
    dots: Sequence[str] = ()
    dashed: bool = False


@dataclass(frozen=True)
class Drawn:
    """A line in pixels: the points of its path, and (x, y, text) of each dot."""

    name: str
    path: str
    colour: str
    dots: list[tuple[float, float, str]]
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart in pixels, y from the top.

    Attributes:
        lines: in drawing order.
        x_ticks: (pixel, label) from the left.
        y_ticks: (pixel, label) from the bottom.
    """

    lines: list[Drawn]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    width: int = WIDTH
    height: int = HEIGHT


class _Axis(Protocol):
    """Maps values to pixels, and gives the labels."""

    def at(self, value: float) -> float:
        """Pixels from the lower end."""

    def ticks(self) -> list[float]:
        """The labelled values."""


@dataclass(frozen=True)
class _Linear:
    """A linear axis: `pixels` from `low` to `high`."""

    low: float
    high: float
    pixels: int

    def at(self, value: float) -> float:
        return round((value - self.low) / (self.high - self.low) * self.pixels, 1)

    def ticks(self) -> list[float]:
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span))
        step = next(s for s in (power / 5, power / 2, power, 2 * power) if span / s <= MOST_TICKS)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [round(step * i, 12) for i in range(first, last + 1)]


@dataclass(frozen=True)
class _Logarithmic:
    """A logarithmic axis: `pixels` from `low` to `high`."""

    low: float
    high: float
    pixels: int

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(share * self.pixels, 1)

    def ticks(self) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        fine = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        inside = [tick for tick in fine if self.low <= tick <= self.high]
        if len(inside) <= MOST_TICKS:
            return inside
        decades = [10.0**power for power in powers if self.low <= 10.0**power <= self.high]
        return decades[:: math.ceil(len(decades) / MOST_TICKS)]


def make_chart(lines: Sequence[Line]) -> Chart:
    """The chart of lines of (bytes, error), at least one of them with a point."""
    points = [point for line in lines for point in line.points]
    x, y = _axis([each[0] for each in points], WIDTH), _axis([each[1] for each in points], HEIGHT)
    return Chart(
        lines=[_drawn(line, x, y) for line in lines],
        x_ticks=_labelled(x, lambda tick: size_text(round(tick)), x.at),
        y_ticks=_labelled(y, lambda tick: f"{tick:g}", lambda tick: HEIGHT - y.at(tick)),
    )


def make_curve(line: Line, height: int) -> Chart:
    """The chart of one line on linear axes."""
    x, y = (
        _Linear(min(values), max(*values, min(values) + LEAST_SPAN), pixels)
        for values, pixels in zip(zip(*line.points, strict=True), (WIDTH, height), strict=True)
    )
    return Chart(
        lines=[_drawn(line, x, y, height)],
        x_ticks=_labelled(x, lambda tick: f"{tick:g}", x.at),
        y_ticks=_labelled(y, lambda tick: f"{tick:g}", lambda tick: height - y.at(tick)),
        height=height,
    )


def _axis(values: Sequence[float], pixels: int) -> _Axis:
    return _Logarithmic(min(values) / MARGIN, max(values) * MARGIN, pixels)


def _labelled(
    axis: _Axis, label: Callable[[float], str], place: Callable[[float], float]
) -> list[tuple[float, str]]:
    return [(place(tick), label(tick)) for tick in axis.ticks()]


def _drawn(line: Line, x: _Axis, y: _Axis, height: int = HEIGHT) -> Drawn:
    places = [(x.at(left), round(height - y.at(up), 1)) for left, up in line.points]
    path = " ".join(f"{left},{top}" for left, top in places)
    dots = [(*place, text) for place, text in zip(places, line.dots, strict=False)]
    return Drawn(line.name, path, line.colour, dots, line.dashed)


MOST_BARS = 60
"""Bars of one picture; of more the largest are shown."""


@dataclass(frozen=True)
class Bar:
    """One bar of a bar chart.

    Attributes:
        name: its label.
        text: its value as text.
        share: its length, as a share of the longest.
        inner: length of its dark part, as a share of the longest.
    """

    name: str
    text: str
    share: float
    inner: float = 0.0


HEIGHT = 140
"""Of a curve, pixels."""
COLOUR = "#2f6db0"


def learning_curves(metrics: Metrics) -> list[tuple[str, Chart]]:
    """Title and curve of the held-out error and of the agreement, over minutes of training."""
    curve, learning = metrics.curve, metrics.learning
    if not curve:
        return []
    unit = learning.get("unit", "error")
    start = [(0.0, learning["start_score"])] if "start_score" in learning else []
    found = {
        f"held-out {unit}": [*start, *_points(curve["minutes"], curve["scores"])],
        "held-out agreement, percent": _points(curve["minutes"], curve["agreement"]),
    }
    return [
        (title, make_curve(Line(title, points, COLOUR), HEIGHT))
        for title, points in found.items()
        if len(points) > 1
    ]


def _points(minutes: list[float | None], values: list[float | None]) -> list[tuple[float, float]]:
    pairs = zip(minutes, values, strict=True)
    return [(m, value) for m, value in pairs if m is not None and value is not None]


PREDICTED, MEASURED = "#2f6db0", "#c2571a"

Row = tuple[str, str, str, str]


def search_rows(metrics: Metrics) -> list[Row]:
    """The target and the result, as rows of the table of metrics."""
    search = metrics.search
    if not search:
        return []
    count = len(search["trials"])
    trials = "1 trial" if count == 1 else f"{count} trials"
    met = "met" if search["met"] else "not met"
    rows: list[Row] = [("target of the search", "", _target(metrics), f"{met}, {trials}")]
    if metrics.kl is not None:
        expected = f"{search['points_per_nat'] * metrics.kl:.2f}"
        rows.append(("drop expected by divergence, points", "", "", expected))
    return rows


def _target(metrics: Metrics) -> str:
    search = metrics.search
    if search["max_size"] is not None:
        return size_text(search["max_size"])
    unit = "points" if search["measure"] == "kl" else "% RMSE"
    return f"{search['max_drop']:g} {unit}"


def search_title(metrics: Metrics) -> str:
    """The title of the search chart."""
    if metrics.search.get("measure") == "error":
        return "RMSE of the outputs, percent,"
    return "Estimated drop, points,"


def search_chart(metrics: Metrics) -> Chart | None:
    """Drop over bytes: predicted along the frontier, and measured on whole models."""
    search = metrics.search
    if not search:
        return None
    predicted = [(float(p["bytes"]), p["drop"]) for p in search["frontier"] if p["drop"] > 0]
    expected = "expected_drop"
    trials = sorted(search["trials"], key=lambda trial: trial["bytes"])
    measured = [(float(t["bytes"]), t[expected]) for t in trials if t[expected] > 0]
    if not predicted or not measured:
        return None
    dots = [f"{size_text(t['bytes'])}, {t['drop']:.2f} by decisions" for t in trials]
    return make_chart(
        [
            Line("weights alone, sums over the layers", predicted, PREDICTED),
            Line("whole models, tried", measured, MEASURED, dots),
        ]
    )


COLUMNS = 8
"""Images beside each other."""
SIDE = 64
"""Pixels of a picture's longer side at least; small images are shown by whole factors."""
MOST_SIDE = 128
"""Pixels of a picture's longer side at most."""
GAP, CAPTION = 4, 12
"""Pixels between pictures, and of the line below each."""


TITLES = {
    "inception": "inception score loss",
    "bn": "BatchNorm statistics, KL divergence in nats",
    "bn-moments": "BatchNorm statistics, moments",
    "adversarial": "adversarial loss, minus the student's cross-entropy",
}
"""What each loss is called."""
LATER = ", in training with the student"
"""Added to the title for a generator that was trained on with the student."""


def contact_sheet(synthesis: Synthesis) -> bytes | None:
    """A PNG of the images with the class below each; None where there are none."""
    if synthesis.pictures is None or not len(synthesis.pictures):
        return None
    tiles = [_tile(picture) for picture in synthesis.pictures]
    width, height = tiles[0].size
    rows = -(-len(tiles) // COLUMNS)
    step = (width + GAP, height + GAP + CAPTION)
    sheet = Image.new("RGB", (COLUMNS * step[0] + GAP, rows * step[1] + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, tile in enumerate(tiles):
        left, top = GAP + i % COLUMNS * step[0], GAP + i // COLUMNS * step[1]
        sheet.paste(tile, (left, top))
        if synthesis.decisions:
            draw.text((left, top + height), str(synthesis.decisions[i]), fill="black")
    data = io.BytesIO()
    sheet.save(data, "PNG")
    return data.getvalue()


def loss_curves(synthesis: Synthesis) -> list[tuple[str, Chart]]:
    """Title and curve of each loss, by minutes; by steps for a generator in joint training."""
    found = [
        (TITLES[kind], list(zip(synthesis.minutes, values, strict=True)))
        for kind, values in synthesis.losses.items()
    ]
    found += [
        (f"{TITLES[kind]}{LATER}", [(float(step), value) for step, value in enumerate(values)])
        for kind, values in synthesis.tuning.items()
    ]
    return [
        (title, make_curve(Line(title, points, COLOUR), HEIGHT))
        for title, points in found
        if len(points) > 1
    ]


def class_bars(classes: Sequence[int]) -> list[Bar]:
    """Images per class, in order; of many classes those with the most."""
    largest = sorted(range(len(classes)), key=lambda c: (-classes[c], c))[:MOST_BARS]
    top = max(classes, default=0) or 1
    return [
        Bar(f"class {c}", str(classes[c]), classes[c] / top, classes[c] / top)
        for c in sorted(largest)
    ]


def _tile(picture: np.ndarray) -> Image.Image:
    """One image in a size for display."""
    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).convert("RGB")
    longer = max(image.size)
    if longer < SIDE:
        factor = -(-SIDE // longer)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((MOST_SIDE, MOST_SIDE))
    return image
