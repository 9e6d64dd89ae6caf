"""`onnxq evaluate`: accuracy on labelled samples, or the difference to a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxq.cli.command import PATH, table_command
from onnxq.cli.errors import require_model
from onnxq.cli.start import make_progress, preprocess_from_flags, start_log, use_cores
from onnxq.options.table import Task


@table_command("evaluate")
@click.argument("model", type=PATH)
@click.pass_context
def evaluate_command(
    ctx: click.Context,
    /,
    model: Path,
    data: Path,
    reference: Path | None,
    samples: int | None,
    batch_size: int,
    task: Task,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: int,
    **flags: Any,
) -> None:
    """Measure MODEL on labelled samples, or against a reference."""
    from onnxq.report.tables import print_evaluation
    from onnxq.verify.evaluate import evaluate as run_evaluate

    start_log(verbose)
    use_cores(ctx, threads)
    require_model(model)
    preprocess = preprocess_from_flags(model, flags)
    with make_progress(quiet, verbose) as progress:
        result = run_evaluate(
            model,
            data,
            reference if reference is None else require_model(reference),
            preprocess=preprocess,
            samples=samples,
            batch_size=batch_size,
            task=task,
            progress=progress,
        )
    if as_json:
        click.echo(result.to_json())
    elif not quiet:
        print_evaluation(result)
