"""Tables for the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnxq.distillation.result import DistillResult, options_of
from onnxq.options.kinds import spelt
from onnxq.options.recipe import recipe_fields
from onnxq.report.contents import ContentRow
from onnxq.report.inspection import Inspection, LayerRow
from onnxq.report.result import metric_rows, worst_first
from onnxq.report.text import (
    NONE,
    decibels_text,
    metric_text,
    number_text,
    percent_text,
    points_text,
    printable,
    size_text,
    time_text,
)
from onnxq.search.table import TITLES, Effect, SweepTable
from onnxq.verify.benchmark import Benchmark
from onnxq.verify.compare import LayerComparison
from onnxq.verify.evaluate import Evaluation
from onnxq.verify.metrics import Metrics

Row = tuple[str, str, str, str]
"""A metric's name, and its values for the teacher, the student before and after training."""


def distil_rows(result: DistillResult) -> list[Row]:
    """The rows of a distillation's table."""
    metrics = result.metrics
    before, after = number_text(metrics.start_score), number_text(metrics.score)
    made = " generated from the teacher alone" if result.synthesis else ""
    run = len(metrics.scores)
    kept = f"epoch {metrics.epoch} of {run}" if metrics.epoch else f"start, {run} run"
    teacher, student = size_text(metrics.teacher_bytes), size_text(metrics.student_bytes)
    rows: list[Row] = [
        ("size", teacher, "", student),
        (f"held-out {metrics.unit}", "", before, after),
    ]
    if metrics.agreement is not None:
        first, last = percent_text(metrics.start_agreement), percent_text(metrics.agreement)
        rows.append(("agreement with the teacher", "", first, last))
    rows += [
        ("kept", "", "", kept),
        ("parameters trained", "", "", f"{metrics.parameters:,}"),
        ("samples", "", "", f"{metrics.samples}{made}, {metrics.held_back} held out"),
    ]
    return rows


def distil_fields(result: DistillResult, teacher: Path, student: Path, out: Path) -> dict[str, Any]:
    """A distillation's result as JSON fields."""
    return {
        "teacher": str(teacher),
        "student": str(student),
        "output": str(out),
        "figures": result.metrics.to_fields(),
        "options": options_of(result.recipe, result.init),
        "notes": result.notes,
    }


UNBOUNDED = 200
"""Columns assumed where stdout is not a terminal, so that names are not folded."""

RUNS_IN = {"integer": "int8", "weight-only": "float, integer weights", "float": "float"}
"""What a layer's arithmetic is called."""


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=UNBOUNDED)


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        justify = "right" if column in right else "left"
        table.add_column(_text(column), justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def _add(table: Table, *cells: object) -> None:
    table.add_row(*(_text(cell) for cell in cells))


def _text(cell: object) -> str:
    return escape(printable(str(cell)))


def print_metrics(metrics: Metrics) -> None:
    """The before/after table."""
    table = _table("", "original", "compressed", "result", right=("result",))
    table.columns[0].no_wrap = True
    for row in metric_rows(metrics):
        _add(table, *row)
    _console().print(table)


def print_costs(metrics: Metrics) -> None:
    """One line per stage: what it cost, and what all of them cost."""
    right = ("CPU seconds", "forward passes")
    table = _table("stage", *right, right=right)
    for row in metrics.costs:
        _add(table, row["stage"], f"{row['seconds']:.1f}", f"{row['passes']:.2f}")
    table.add_section()
    seconds, passes = (sum(row[key] for row in metrics.costs) for key in ("seconds", "passes"))
    _add(table, "all", f"{seconds:.1f}", f"{passes:.2f}")
    _console().print(table)


def print_distillation(result: DistillResult) -> None:
    """Teacher and student, before and after."""
    table = _table("", "teacher", "student before", "after", right=("after",))
    for row in distil_rows(result):
        _add(table, *row)
    _console().print(table)


def print_layers(rows: Sequence[LayerRow]) -> None:
    """One line per layer: what it is, how it is quantized, and why."""
    right = ("parameters", "bytes", "bits")
    table = _table("layer", "operator", *right[:2], "bits", "runs in", "reason", right=right)
    for row in rows:
        bits = NONE if row.num_bits is None else f"{row.num_bits:g}"
        sizes = f"{row.bytes_before:,} -> {row.bytes_after:,}"
        compute, shares = _compute_text(row), f"reads the weights of '{row.shares}'"
        reason = "; ".join(text for text in (row.reason, shares if row.shares else "") if text)
        _add(table, row.name, row.op_type, f"{row.parameters:,}", sizes, bits, compute, reason)
    _console().print(table)
    own = [row for row in rows if not row.shares]
    before, after = sum(r.bytes_before for r in own), sum(r.bytes_after for r in own)
    integer = sum(row.compute == "integer" for row in rows)
    _console().print(
        f"{len(rows)} layers, {integer} on integer kernels; weights "
        f"{size_text(before)} -> {size_text(after)}"
    )


def print_options(rows: Sequence[dict[str, Any]]) -> None:
    """One line per option: its value, and where that comes from."""
    table = _table("option", "value", "from")
    for row in rows:
        _add(table, row["option"], _value_text(row["value"]), row["from"])
    _console().print(table)


def _value_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(spelt, value)) or NONE
    return NONE if value is None else spelt(value)


def print_contents(rows: Sequence[ContentRow]) -> None:
    """One line per kind of bytes, the largest first, and their sum: the file's size."""
    right = ("tensors", "bytes", "share")
    table = _table("in the file", *right, "quantized", "largest", "reason", right=right)
    size = sum(row.bytes for row in rows)
    for row in rows:
        share = percent_text(row.bytes / size)
        quantized = ("yes" if row.quantized else "no") if row.tensors else NONE
        count = row.tensors or NONE
        _add(table, row.what, count, f"{row.bytes:,}", share, quantized, row.largest, row.reason)
    table.add_section()
    tensors = sum(row.tensors for row in rows)
    _add(table, "in all", tensors, f"{size:,}", percent_text(1.0), "", "", "")
    _console().print(table)


def _compute_text(row: LayerRow) -> str:
    if row.codebook is not None:
        return f"{'int8' if row.compute == 'integer' else 'float'}, {row.codebook} centroids"
    return RUNS_IN[row.compute]


def print_kernels(metrics: Metrics) -> None:
    """One line per layer: the operator that ONNX Runtime runs it with."""
    table = _table("layer", "runs as", "reason")
    for name, kernel in metrics.kernels.items():
        _add(table, name, kernel, metrics.weight_only.get(name, ""))
    for name, reason in metrics.left_alone.items():
        _add(table, name, "as before", reason)
    _console().print(table)


def print_notes(notes: Sequence[str]) -> None:
    """Sentences, one per line."""
    for note in notes:
        _console().print(f"note: {_text(note)}", soft_wrap=True)


def print_inspection(found: Inspection, *, layers: bool = True) -> None:
    """The result of `inspect`."""
    console = _console()
    operators = ", ".join(f"{name} {count}" for name, count in found.operators.items())
    lines = [
        f"{found.path}: {size_text(found.size)}, {found.parameters:,} parameters, "
        f"opset {found.opset}, IR {found.ir_version}",
        *(f"input {name}: {text}" for name, text in found.inputs.items()),
        *(f"output {name}: {text}" for name, text in found.outputs.items()),
        f"operators: {operators}",
    ]
    if found.version is not None:
        lines.append(f"written by onnxq {found.version}")
    if found.recipe is not None:
        lines.append(f"recipe: {json.dumps(recipe_fields(found.recipe), sort_keys=True)}")
    if found.preprocess is not None:
        lines.append(f"preprocessing: {json.dumps(found.preprocess, sort_keys=True)}")
    console.print("\n".join(map(_text, lines)), soft_wrap=True)
    if layers:
        print_layers(found.layers)
        print_contents(found.contents)
    if found.metrics is not None:
        print_metrics(found.metrics)
    print_notes(found.notes)


def print_evaluation(result: Evaluation) -> None:
    """Top-1 and top-5, and the difference to the reference."""
    table = _table("", "result", right=("result",))
    rows = [
        ("samples", f"{result.samples:,}"),
        ("top-1, %", points_text(result.top1, result.error)),
        ("top-5, %", points_text(result.top5)),
        ("top-1 of the reference, %", points_text(result.reference_top1)),
        ("top-5 of the reference, %", points_text(result.reference_top5)),
        ("drop, paired, points", points_text(result.drop, result.drop_error)),
        ("task", result.task or NONE),
        *((name, metric_text(name, value)) for name, value in result.task_metrics.items()),
        ("agreement with the reference, %", points_text(result.agreement)),
        ("KL divergence", number_text(result.kl)),
        ("estimated drop without labels, points", points_text(result.estimated_drop)),
        *((f"SQNR of {name}", decibels_text(db)) for name, db in worst_first(result.sqnr_db)),
    ]
    for name, text in rows:
        if text != "-":
            _add(table, name, text)
    _console().print(table)
    _print_skipped(result.skipped)


def print_comparison(result: LayerComparison) -> None:
    """One line per layer, worst first, then the outputs of the model."""
    right = ("bits", "SQNR", "of the weights")
    table = _table("layer", "operator", "bits", "runs in", *right[1:], right=right)
    for row in result.layers:
        bits = NONE if row.num_bits is None else row.num_bits
        output = NONE if row.sqnr_db is None else decibels_text(row.sqnr_db)
        weights = decibels_text(row.weight_sqnr_db)
        _add(table, row.name, row.op_type, bits, RUNS_IN[row.compute], output, weights)
    table.add_section()
    for name, decibels in result.outputs.items():
        _add(table, name, "output", "", "", decibels_text(decibels), "")
    _console().print(table)
    _console().print(f"{len(result.layers)} layers on {result.samples:,} samples")
    if result.equalized:
        print_notes(["channels were equalized, which these metrics undo"])
    _print_skipped(result.skipped)


def _print_skipped(skipped: Sequence[str]) -> None:
    if skipped:
        count, first = len(skipped), skipped[0]
        print_notes([f"{count} unreadable files were left out, the first is '{first}'"])


def print_sweep(table: SweepTable, *, sizes: bool = False) -> None:
    """Layers in rows, settings of one kind in columns: the error, then the drop of classifiers.

    Args:
        table: of the sweep.
        sizes: whether to print the bytes of each setting as well.
    """
    _print_effects(table, TITLES[table.measure], lambda effect: number_text(effect.error, 2))
    if table.measure == "kl":
        title = "estimated drop, points ± one standard error"
        _print_effects(table, title, _drop_text)
    if sizes:
        _print_effects(table, "bytes of the weights", lambda effect: f"{effect.size:,}")
    print_notes(table.notes)
    layers = "1 layer" if len(table.rows) == 1 else f"{len(table.rows)} layers"
    made = " generated from the model alone" if table.synthetic else ""
    samples = f"{table.samples} samples{made}"
    _console().print(f"{layers}, each alone and all others in float, on {samples}")


def _drop_text(effect: Effect) -> str:
    """A drop; plain 0 where every decision is the same."""
    return points_text(effect.drop, effect.drop_error) if effect.drop_error else "0"


def _print_effects(table: SweepTable, title: str, text: Callable[[Effect], str]) -> None:
    for kind, settings in table.kinds.items():
        labels = [setting.label for setting in settings]
        found = _table("layer", "weights", *labels, right=("weights", *labels))
        for row in table.rows:
            cells = [text(row.effects[s]) if s in row.effects else NONE for s in settings]
            _add(found, row.name, f"{row.parameters:,}", *cells)
        _console().print(_text(f"{title}, {kind}"), found)


def print_benchmarks(results: Sequence[Benchmark]) -> None:
    """One line per model."""
    right = ("size", "latency", "ratio")
    table = _table("model", *right, right=right)
    for each in results:
        latency = time_text(each.latency.median_ms, each.latency.spread_ms)
        _add(table, each.path, size_text(each.size), latency, f"{each.ratio:.2f} ×")
    _console().print(table)
    rounds = results[0].latency.rounds
    _console().print(f"median ± interquartile range of {rounds} interleaved runs")
