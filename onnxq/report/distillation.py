"""What distillation gave, in rows and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxq.distil.result import DistillResult, options_of
from onnxq.report.text import number_text, percent_text, size_text

Row = tuple[str, str, str, str]
"""Name of a figure, of the teacher, of the student before, of the student as it is written."""


def distil_rows(result: DistillResult) -> list[Row]:
    """The table of a run."""
    figures = result.figures
    before, after = number_text(figures.start_score), number_text(figures.score)
    made = " made from the teacher alone" if result.synthesis else ""
    run = len(figures.scores)
    kept = f"epoch {figures.epoch} of {run}" if figures.epoch else f"start, {run} run"
    teacher, student = size_text(figures.teacher_bytes), size_text(figures.student_bytes)
    rows: list[Row] = [
        ("size", teacher, "", student),
        (f"held-back {figures.unit}", "", before, after),
    ]
    if figures.agreement is not None:
        first, last = percent_text(figures.start_agreement), percent_text(figures.agreement)
        rows.append(("agreement with the teacher", "", first, last))
    rows += [
        ("kept", "", "", kept),
        ("numbers trained", "", "", f"{figures.parameters:,}"),
        ("samples", "", "", f"{figures.samples}{made}, {figures.held_back} held back"),
    ]
    return rows


def distil_fields(result: DistillResult, teacher: Path, student: Path, out: Path) -> dict[str, Any]:
    """The result as JSON takes it."""
    return {
        "teacher": str(teacher),
        "student": str(student),
        "output": str(out),
        "figures": result.figures.to_fields(),
        "options": options_of(result.recipe, result.init),
        "notes": result.notes,
    }
