"""What a search found, as rows of the table and as a picture."""

from __future__ import annotations

from onnxq.report.chart import Chart, Line, make_chart
from onnxq.report.text import size_text
from onnxq.verify.figures import Figures

PREDICTED, MEASURED = "#2f6db0", "#c2571a"

Row = tuple[str, str, str, str]


def search_rows(figures: Figures) -> list[Row]:
    """The target and what was found, as the table of figures has it."""
    search = figures.search
    if not search:
        return []
    count = len(search["trials"])
    trials = "1 trial" if count == 1 else f"{count} trials"
    met = "met" if search["met"] else "not met"
    rows: list[Row] = [("target of the search", "", _target(figures), f"{met}, {trials}")]
    if figures.kl is not None:
        expected = f"{search['points_per_nat'] * figures.kl:.2f}"
        rows.append(("drop expected by divergence, points", "", "", expected))
    return rows


def _target(figures: Figures) -> str:
    search = figures.search
    if search["max_size"] is not None:
        return size_text(search["max_size"])
    unit = "points" if search["measure"] == "kl" else "% RMSE"
    return f"{search['max_drop']:g} {unit}"


def search_title(figures: Figures) -> str:
    """What the picture shows upwards."""
    if figures.search.get("measure") == "error":
        return "RMSE of the outputs, percent,"
    return "Estimated drop, points,"


def search_chart(figures: Figures) -> Chart | None:
    """Drop against bytes: what the frontier predicts, and the whole models that were measured."""
    search = figures.search
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
