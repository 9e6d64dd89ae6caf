"""Charts of the HTML report: lines and bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from onnxq.report.text import size_text

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
