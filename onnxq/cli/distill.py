"""`onnxq distill`: train another architecture to give a teacher's outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxq.cli.command import PATH, recipe_from_flags, table_command
from onnxq.cli.errors import require_model, stopped_sentence
from onnxq.cli.start import (
    check_samples,
    make_progress,
    preprocess_from_flags,
    say_engine,
    start_log,
    use_cores,
)
from onnxq.report.text import printable, size_text

if TYPE_CHECKING:
    from onnxq.distillation.result import DistillResult


@table_command("distill")
@click.argument("teacher", type=PATH)
@click.argument("student", type=PATH)
@click.pass_context
def distill_command(
    ctx: click.Context,
    /,
    teacher: Path,
    student: Path,
    data: Path | None,
    output: Path | None,
    quiet: bool,
    verbose: int,
    threads: int | None,
    **flags: Any,
) -> None:
    """Train STUDENT to give TEACHER's outputs, without labels.

    STUDENT is an ONNX file of any architecture that takes and gives the same shapes; it may be
    untrained. Its weights, biases and BatchNormalization are learned from unlabelled samples, or
    from images generated from TEACHER alone. The output is an ordinary float model with the
    student's own names, which compress takes in turn.
    """
    from onnxq.distillation.distillation import distill as run_distill
    from onnxq.report.tables import distil_fields

    start_log(verbose)
    use_cores(ctx, threads)
    recipe = recipe_from_flags(ctx)
    for path in (teacher, student):
        require_model(path)
    check_samples(ctx, data, recipe.data_free, "--data-free goes")
    out = output or student.with_name(f"{student.stem}-distilled.onnx")
    say_engine(recipe, verbose)
    preprocess = preprocess_from_flags(teacher, flags)
    with stopped_sentence(out), make_progress(quiet, verbose) as progress:
        result = run_distill(
            teacher,
            student,
            data,
            recipe,
            init=flags["init"],
            out=out,
            preprocess=preprocess,
            force=flags["force"],
            resume=flags["resume"],
            progress=progress,
            generator=flags["generator"],
            save_generator=flags["save_generator"],
            allow_worse=flags["allow_worse"],
        )
    if flags["as_json"]:
        click.echo(json.dumps(distil_fields(result, teacher, student, out), sort_keys=True))
    else:
        _print(result, out, quiet)
    if result.unsaved is not None:
        raise result.unsaved


def _print(result: DistillResult, out: Path, quiet: bool) -> None:
    from onnxq.report.tables import print_distillation, print_notes

    metrics = result.metrics
    if not quiet:
        print_distillation(result)
        print_notes(result.notes)
    ratio = metrics.student_bytes / max(metrics.teacher_bytes, 1)
    sizes = f"{size_text(metrics.teacher_bytes)} -> {size_text(metrics.student_bytes)}"
    click.echo(f"wrote {printable(str(out))}: {ratio:.1%} of the teacher's size ({sizes})")
