"""One HTML file with pictures, and the same metrics as JSON beside it."""

from __future__ import annotations

import base64
import json
import tempfile
from pathlib import Path

from jinja2 import Environment, PackageLoader, Template

from onnxq import __version__
from onnxq.errors import OutputError
from onnxq.options.recipe import recipe_toml
from onnxq.report.inspection import LayerRow, plan_rows
from onnxq.report.result import metric_rows, result_fields, result_notes, score_history
from onnxq.report.sections import (
    MOST_BARS,
    Bar,
    class_bars,
    contact_sheet,
    learning_curves,
    loss_curves,
    search_chart,
    search_title,
)
from onnxq.report.text import size_text
from onnxq.runtime.temporary import write_whole
from onnxq.verify.result import Result

PAGE = "report.html"
"""The page's file in the folder of a report."""

SHEET = "images.png"
"""The file with synthetic images, where there are any."""


def make_folder(folder: Path) -> None:
    """Create the folder of a report.

    Raises:
        OutputError: it can't be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def check_folder(folder: Path) -> None:
    """Check before the long work whether a report can be written; nothing is left there.

    Raises:
        OutputError: the folder can't be created or written.
    """
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        make_folder(folder)
        tempfile.TemporaryFile(dir=folder).close()
        for path in made:
            path.rmdir()
    except OSError as error:
        raise cannot_write(folder, error) from error


def write_report(folder: Path, model: Path, out: Path, result: Result) -> None:
    """Write `report.html` and `report.json` into a folder, which is created if needed.

    Where samples are synthetic, `images.png` shows some of them.

    Args:
        folder: where to write.
        model: the original.
        out: the exported model.
        result: of the run.

    Raises:
        OutputError: the folder can't be written.
    """
    make_folder(folder)
    text = json.dumps(result_fields(result, model, out), sort_keys=True, indent=1)
    try:
        write_whole(folder / PAGE, render(model, out, result).encode(errors="backslashreplace"))
        write_whole(folder / "report.json", f"{text}\n".encode())
        if result.synthesis is not None and (sheet := contact_sheet(result.synthesis)) is not None:
            write_whole(folder / SHEET, sheet)
    except OSError as error:
        raise cannot_write(folder, error) from error


def cannot_write(folder: Path, error: OSError) -> OutputError:
    """The error for a report whose folder can't be created or written."""
    reason = error.strerror or str(error)
    return OutputError(
        f"Can't write the report to '{folder}' ({reason}); name another folder with --report."
    )


def render(model: Path, out: Path, result: Result) -> str:
    """The HTML text; it loads nothing from elsewhere."""
    rows = plan_rows(result.model, result.plan)
    made = result.synthesis
    sheet = None if made is None else contact_sheet(made)
    return template("report.html.j2").render(
        version=__version__,
        model=model.name,
        out=out.name,
        metrics=metric_rows(result.metrics),
        notes=result_notes(result),
        search=search_chart(result.metrics),
        search_title=search_title(result.metrics),
        search_settings=list(result.metrics.search.get("settings", {}).items()),
        made=made,
        made_sheet=None if sheet is None else base64.b64encode(sheet).decode(),
        made_curves=[] if made is None else loss_curves(made),
        made_bars=[] if made is None else class_bars(made.classes),
        layers=rows,
        kernels=result.metrics.kernels,
        size_bars=size_bars(rows),
        score_bars=score_bars(
            score_history(result.metrics), result.metrics.learning.get("epoch", 0)
        ),
        score_curves=learning_curves(result.metrics),
        recipe=recipe_toml(result.recipe),
    )


def template(name: str) -> Template:
    """One of the package's templates; inserted text is escaped."""
    environment = Environment(
        loader=PackageLoader("onnxq.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def size_bars(rows: list[LayerRow]) -> list[Bar]:
    """Bytes of each layer, before and after; of many layers the largest, in graph order."""
    largest = sorted(rows, key=lambda row: -row.bytes_before)[:MOST_BARS]
    top = max((row.bytes_before for row in largest), default=0) or 1
    return [
        Bar(
            row.name,
            f"{size_text(row.bytes_before)} → {size_text(row.bytes_after)}",
            row.bytes_before / top,
            row.bytes_after / top,
        )
        for row in rows
        if row in largest
    ]


def score_bars(scores: list[float | None], kept: int | None = None) -> list[Bar]:
    """The held-out error after each epoch; the first bar is the start.

    Args:
        scores: lower is better; None is worse than any number.
        kept: index of the exported one, which is drawn dark.
    """
    top = max((score for score in scores if score is not None), default=0.0) or 1.0
    bars = []
    for i, score in enumerate(scores):
        name = "start" if i == 0 else f"epoch {i}"
        name += " (kept)" if i == kept else ""
        share = 1.0 if score is None else score / top
        text = "not finite" if score is None else f"{score:.4f}"
        bars.append(Bar(name, text, share, share if i == kept else 0.0))
    return bars
