"""How far learning had come, and when."""

from __future__ import annotations

from onnxq.report.chart import Chart, Line, make_curve
from onnxq.verify.figures import Figures

HEIGHT = 140
"""Of a curve, pixels."""
COLOUR = "#2f6db0"


def learning_curves(figures: Figures) -> list[tuple[str, Chart]]:
    """Title and curve of the held-back error and of the agreement, by minutes of learning."""
    curve, learning = figures.curve, figures.learning
    if not curve:
        return []
    unit = learning.get("unit", "error")
    start = [(0.0, learning["start_score"])] if "start_score" in learning else []
    found = {
        f"held-back {unit}": [*start, *_points(curve["minutes"], curve["scores"])],
        "held-back agreement, percent": _points(curve["minutes"], curve["agreement"]),
    }
    return [
        (title, make_curve(Line(title, points, COLOUR), HEIGHT))
        for title, points in found.items()
        if len(points) > 1
    ]


def _points(minutes: list[float | None], values: list[float | None]) -> list[tuple[float, float]]:
    pairs = zip(minutes, values, strict=True)
    return [(m, value) for m, value in pairs if m is not None and value is not None]
