"""Line charts on logarithmic axes, in the pixels that a template draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxq.report.text import size_text

WIDTH, HEIGHT = 640, 320
"""Of the plotting area, pixels."""

MOST_TICKS = 9
"""Ticks of an axis; of more, whole decades alone are kept."""

MARGIN = 1.15
"""Factor by which an axis goes beyond the points."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line, with a dot at each point.

    Attributes:
        name: what it stands for.
        points: (bytes, error), both above zero.
        colour: as CSS has it.
        dots: what each dot says; empty for a bare line.
        dashed: whether the line is.
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
        lines: in the order in which they are drawn.
        x_ticks: (pixel, label) from the left.
        y_ticks: (pixel, label) from the bottom.
    """

    lines: list[Drawn]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True)
class _Axis:
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
    """The chart of some lines, at least one of them with a point."""
    points = [point for line in lines for point in line.points]
    x, y = _axis([each[0] for each in points], WIDTH), _axis([each[1] for each in points], HEIGHT)
    return Chart(
        lines=[_drawn(line, x, y) for line in lines],
        x_ticks=_labelled(x, lambda tick: size_text(round(tick)), x.at),
        y_ticks=_labelled(y, lambda tick: f"{tick:g}", lambda tick: HEIGHT - y.at(tick)),
    )


def _axis(values: Sequence[float], pixels: int) -> _Axis:
    return _Axis(min(values) / MARGIN, max(values) * MARGIN, pixels)


def _labelled(
    axis: _Axis, label: Callable[[float], str], place: Callable[[float], float]
) -> list[tuple[float, str]]:
    return [(place(tick), label(tick)) for tick in axis.ticks()]


def _drawn(line: Line, x: _Axis, y: _Axis) -> Drawn:
    places = [(x.at(size), round(HEIGHT - y.at(error), 1)) for size, error in line.points]
    path = " ".join(f"{left},{top}" for left, top in places)
    dots = [(*place, text) for place, text in zip(places, line.dots, strict=False)]
    return Drawn(line.name, path, line.colour, dots, line.dashed)
