"""A run's result as rows, sentences and JSON, for any kind of report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxq.report.sections import search_rows
from onnxq.report.text import (
    decibels_text,
    metric_text,
    number_text,
    percent_text,
    points_text,
    size_text,
    time_text,
)
from onnxq.verify.kernels import INTEGER_KERNELS
from onnxq.verify.metrics import Metrics
from onnxq.verify.result import Result

Row = tuple[str, str, str, str]
"""Name of a metric, before, after, and what they make together."""

MOST_OUTPUTS = 4


def metric_rows(metrics: Metrics) -> list[Row]:
    """The before/after table."""
    rows: list[Row] = [
        (
            "size",
            size_text(metrics.size_before),
            size_text(metrics.size_after),
            f"{metrics.ratio:.1%}",
        )
    ]
    if metrics.shipped_before and metrics.shipped_after:
        before, after = size_text(metrics.shipped_before), size_text(metrics.shipped_after)
        shipped = f"{metrics.shipped_after / metrics.shipped_before:.1%}"
        rows.append(("size, compressed by deflate", before, after, shipped))
    ratio = metrics.latency_ratio
    if ratio is not None:
        before = time_text(metrics.latency_before_ms, metrics.latency_before_spread_ms)
        after = time_text(metrics.latency_after_ms, metrics.latency_after_spread_ms)
        rows.append(("latency, 1 thread", before, after, f"{ratio:.2f} ×"))
    return [
        *rows,
        *_output_rows(metrics),
        *search_rows(metrics),
        *_layer_rows(metrics),
        *_learning_rows(metrics),
    ]


def worst_first(sqnr_db: Mapping[str, float]) -> list[tuple[str, float]]:
    """Names of outputs with their SQNR."""
    return sorted(sqnr_db.items(), key=lambda each: each[1])


def _output_rows(metrics: Metrics) -> list[Row]:
    rows: list[Row] = [("task", "", "", metrics.task)] if metrics.task else []
    for name, value in metrics.task_metrics.items():
        rows.append((name, "", "", metric_text(name, value)))
    if metrics.agreement is not None:
        rows.append(("agreement", "", "", percent_text(metrics.agreement)))
    if metrics.kl is not None:
        rows.append(("KL divergence", "", "", number_text(metrics.kl)))
    if metrics.estimated_drop is not None:
        drop = points_text(metrics.estimated_drop, metrics.estimated_drop_error)
        rows.append(("estimated drop, points", "", "", drop))
    outputs = worst_first(metrics.sqnr_db)
    for name, value in outputs[:MOST_OUTPUTS]:
        rows.append((f"SQNR of {name}", "", "", decibels_text(value)))
    if rest := outputs[MOST_OUTPUTS:]:
        least = decibels_text(rest[0][1])
        rows.append((f"SQNR of {len(rest)} more outputs", "", "", f">= {least}"))
    return rows


def _layer_rows(metrics: Metrics) -> list[Row]:
    count = metrics.layers or len(metrics.kernels)
    rows: list[Row] = [("layers in integers", "", "", f"{metrics.integer_layers} of {count}")]
    if metrics.codebooks:
        rows.append(("layers as codebooks", "", "", f"{len(metrics.codebooks)} of {count}"))
    if metrics.saturating:
        risk = f"{len(metrics.saturating)} (--target cpu-avx2 avoids it)"
        rows.append(("layers that may overflow without VNNI", "", "", risk))
    if metrics.weight_only:
        rows.append(("weight-only layers", "", "", str(len(metrics.weight_only))))
    if metrics.left_alone:
        rows.append(("layers in float", "", "", str(len(metrics.left_alone))))
    return rows


def _learning_rows(metrics: Metrics) -> list[Row]:
    rows: list[Row] = []
    learning = metrics.learning
    if learning.get("epochs_run"):
        start = learning.get("start_score")
        end = learning.get("learned_score", learning.get("score"))
        epoch, run = learning.get("epoch", 0), learning["epochs_run"]
        epochs = "1 epoch" if run == 1 else f"{run} epochs"
        kept = f"epoch {epoch} of {run}" if epoch else f"start kept, {epochs}"
        before, after = number_text(start), number_text(end)
        rows.append((f"held-out {learning.get('unit', 'error')}", before, after, kept))
    if metrics.equalization:
        rows.append(("equalization", "", "", metrics.equalization))
    rows.append(("bias correction", "", "", "yes" if metrics.bias_correction else "no"))
    if shared := metrics.bias_centroids:
        count = "1 centroid" if shared["count"] == 1 else f"{shared['count']} centroids"
        before, after = number_text(shared["own"]), number_text(shared["shared"])
        rows.append(("held-out error of shared biases", before, after, f"{count} for each layer"))
    if metrics.samples:
        made = " generated from the model alone" if metrics.synthesis else ""
        held_out = f"{metrics.samples}{made}, {metrics.held_back} held out"
        rows.append(("samples", "", "", held_out))
    return rows


def score_history(metrics: Metrics) -> list[float | None]:
    """The held-out score at the start of learning and after each epoch; None: not finite."""
    learning = metrics.learning
    start = [learning["start_score"]] if "start_score" in learning else []
    return [*start, *learning.get("scores", [])] if learning.get("scores") else []


def result_notes(result: Result) -> list[str]:
    """The notes for the user, each once."""
    metrics = result.metrics
    notes = [*result.notes, *metrics.notes]
    ratio = metrics.latency_ratio
    int4 = {spec.name for spec in result.plan.layers.values() if spec.int4}
    if int4:
        notes.append(
            f"{len(int4)} of {metrics.layers} layers hold INT4 tensors, for accelerators that take "
            "them: ONNX Runtime computes them in float on a CPU, more slowly than the original "
            "(--target cpu runs the same weights on integer kernels)"
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
    if metrics.float_nodes and not int4:
        shown = ", ".join(metrics.float_nodes[:5])
        more = len(metrics.float_nodes) - 5
        rest = f" and {more} more" if more > 0 else ""
        notes.append(f"these nodes stay float between integer ones: {shown}{rest}")
    planned = {spec.name for spec in result.plan.integer_layers()}
    missed = planned - int4 - _integer_names(metrics, planned)
    if missed:
        names = ", ".join(sorted(missed)[:5])
        notes.append(f"planned for integer kernels but run in float by ONNX Runtime: {names}")
    return list(dict.fromkeys(notes))


def _integer_names(metrics: Metrics, planned: set[str]) -> set[str]:
    if not metrics.kernels:
        return planned
    return {name for name in planned if metrics.kernels.get(name) in INTEGER_KERNELS}


def result_fields(result: Result, model: Path, out: Path) -> dict[str, Any]:
    """The result as JSON fields."""
    return {
        "model": str(model),
        "output": str(out),
        "ratio": result.metrics.ratio,
        "figures": result.metrics.to_fields(),
        "recipe": json.loads(result.recipe.to_json()),
        "notes": result_notes(result),
    }
