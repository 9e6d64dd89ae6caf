"""A run's result in rows, sentences and JSON, for any kind of report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onnxq.pipeline import Result
from onnxq.report.sections import search_rows
from onnxq.report.text import (
    decibels_text,
    number_text,
    percent_text,
    points_text,
    size_text,
    time_text,
)
from onnxq.verify.kernels import INTEGER_KERNELS
from onnxq.verify.metrics import Figures

Row = tuple[str, str, str, str]
"""Name of a figure, before, after, and what they make together."""

MOST_OUTPUTS = 4


def figure_rows(figures: Figures) -> list[Row]:
    """The before/after table."""
    rows: list[Row] = [
        (
            "size",
            size_text(figures.size_before),
            size_text(figures.size_after),
            f"{figures.ratio:.1%}",
        )
    ]
    if figures.shipped_before and figures.shipped_after:
        before, after = size_text(figures.shipped_before), size_text(figures.shipped_after)
        shipped = f"{figures.shipped_after / figures.shipped_before:.1%}"
        rows.append(("size, compressed by deflate", before, after, shipped))
    ratio = figures.latency_ratio
    if ratio is not None:
        before = time_text(figures.latency_before_ms, figures.latency_before_spread_ms)
        after = time_text(figures.latency_after_ms, figures.latency_after_spread_ms)
        rows.append(("latency, 1 thread", before, after, f"{ratio:.2f} ×"))
    return [
        *rows,
        *_output_rows(figures),
        *search_rows(figures),
        *_layer_rows(figures),
        *_learning_rows(figures),
    ]


def _output_rows(figures: Figures) -> list[Row]:
    rows: list[Row] = []
    if figures.agreement is not None:
        rows.append(("agreement", "", "", percent_text(figures.agreement)))
    if figures.kl is not None:
        rows.append(("KL divergence", "", "", number_text(figures.kl)))
    if figures.estimated_drop is not None:
        drop = points_text(figures.estimated_drop, figures.estimated_drop_error)
        rows.append(("estimated drop, points", "", "", drop))
    for name, value in list(figures.sqnr_db.items())[:MOST_OUTPUTS]:
        rows.append((f"SQNR of {name}", "", "", decibels_text(value)))
    rest = list(figures.sqnr_db.values())[MOST_OUTPUTS:]
    if rest:
        rows.append((f"SQNR of {len(rest)} more outputs", "", "", f">= {decibels_text(min(rest))}"))
    return rows


def _layer_rows(figures: Figures) -> list[Row]:
    count = figures.layers or len(figures.kernels)
    rows: list[Row] = [("layers in integers", "", "", f"{figures.integer_layers} of {count}")]
    if figures.codebooks:
        rows.append(("layers as codebooks", "", "", f"{len(figures.codebooks)} of {count}"))
    if figures.saturating:
        risk = f"{len(figures.saturating)} (--target cpu-avx2 avoids it)"
        rows.append(("layers that may overflow without VNNI", "", "", risk))
    if figures.weight_only:
        rows.append(("weight-only layers", "", "", str(len(figures.weight_only))))
    if figures.left_alone:
        rows.append(("layers in float", "", "", str(len(figures.left_alone))))
    return rows


def _learning_rows(figures: Figures) -> list[Row]:
    rows: list[Row] = []
    learning = figures.learning
    if learning.get("epochs_run"):
        start = learning.get("start_score")
        end = learning.get("learned_score", learning.get("score"))
        epoch, run = learning.get("epoch", 0), learning["epochs_run"]
        epochs = "1 epoch" if run == 1 else f"{run} epochs"
        kept = f"epoch {epoch} of {run}" if epoch else f"start kept, {epochs}"
        before, after = number_text(start), number_text(end)
        rows.append((f"held-back {learning.get('unit', 'error')}", before, after, kept))
    if figures.equalization:
        rows.append(("equalization", "", "", figures.equalization))
    rows.append(("bias correction", "", "", "yes" if figures.bias_correction else "no"))
    if shared := figures.bias_centroids:
        count = "1 centroid" if shared["count"] == 1 else f"{shared['count']} centroids"
        before, after = number_text(shared["own"]), number_text(shared["shared"])
        rows.append(("held-back error of shared biases", before, after, f"{count} for each layer"))
    if figures.samples:
        made = " made from the model alone" if figures.synthesis else ""
        held_back = f"{figures.samples}{made}, {figures.held_back} held back"
        rows.append(("samples", "", "", held_back))
    return rows


def score_history(figures: Figures) -> list[float | None]:
    """The held-back score at the start of learning and after each epoch; None: not finite."""
    learning = figures.learning
    start = [learning["start_score"]] if "start_score" in learning else []
    return [*start, *learning.get("scores", [])] if learning.get("scores") else []


def result_notes(result: Result) -> list[str]:
    """What the user should know, each thing once."""
    figures = result.figures
    notes = [*result.notes, *figures.notes]
    ratio = figures.latency_ratio
    int4 = {spec.name for spec in result.plan.layers.values() if spec.int4}
    if int4:
        notes.append(
            f"{len(int4)} of {figures.layers} layers hold INT4 tensors, for accelerators that take "
            "them: ONNX Runtime computes them in float on a CPU, more slowly than the original "
            "(--target cpu gives the same codes integer kernels)"
        )
    # Less than what the table shows is the clock.
    if ratio is not None and round(ratio, 2) > 1 and not int4:
        remedy = (
            "; use --activation-bits none for integer weights at float speed"
            if result.recipe.activation_bits is not None
            else ""
        )
        kind = "int8" if result.recipe.activation_bits is not None else "the compressed model"
        notes.append(f"{kind} is slower than float on this machine ({ratio:.2f} ×){remedy}")
    if figures.float_nodes and not int4:
        shown = ", ".join(figures.float_nodes[:5])
        more = len(figures.float_nodes) - 5
        rest = f" and {more} more" if more > 0 else ""
        notes.append(f"these nodes stay float between integer ones: {shown}{rest}")
    planned = {spec.name for spec in result.plan.integer_layers()}
    missed = planned - int4 - _integer_names(figures, planned)
    if missed:
        names = ", ".join(sorted(missed)[:5])
        notes.append(f"planned for integer kernels but run in float by ONNX Runtime: {names}")
    return list(dict.fromkeys(notes))


def _integer_names(figures: Figures, planned: set[str]) -> set[str]:
    if not figures.kernels:
        return planned
    return {name for name in planned if figures.kernels.get(name) in INTEGER_KERNELS}


def result_fields(result: Result, model: Path, out: Path) -> dict[str, Any]:
    """The result as JSON takes it."""
    return {
        "model": str(model),
        "output": str(out),
        "ratio": result.figures.ratio,
        "figures": result.figures.to_fields(),
        "recipe": json.loads(result.recipe.to_json()),
        "notes": result_notes(result),
    }
