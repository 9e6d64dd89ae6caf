"""`onnxq sensitivity`: the effect of each setting of each layer alone on the outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from onnxq.cli.command import PATH, recipe_from_flags, table_command
from onnxq.cli.errors import require_model
from onnxq.cli.start import (
    check_samples,
    make_progress,
    preprocess_from_flags,
    say_engine,
    start_log,
    use_cores,
)


@table_command("sensitivity")
@click.argument("model", type=PATH)
@click.pass_context
def sensitivity_command(
    ctx: click.Context,
    /,
    model: Path,
    data: Path | None,
    output: Path | None,
    report_folder: Path | None,
    force: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: int,
    **flags: Any,
) -> None:
    """Try every setting on each layer of MODEL alone.

    Settings are integer weights of 2 to 8 bits and codebooks of 2 to 256 centroids, where they save
    bytes. All other layers stay in float, and the outputs are compared on the held-out samples: a
    classifier by KL divergence and the estimated drop of top-1 accuracy, any other model by the
    relative squared error.
    """
    from onnxq.pipeline import sensitivity as run_sensitivity
    from onnxq.report.sensitivity import write_pictures, write_table
    from onnxq.report.tables import print_sweep

    start_log(verbose)
    use_cores(ctx, threads)
    recipe = recipe_from_flags(ctx)
    require_model(model)
    check_samples(ctx, data, recipe.data_free, "--data-free goes")
    timed = ctx.get_parameter_source("max_minutes") is ParameterSource.COMMANDLINE
    if timed and not recipe.data_free:
        raise click.UsageError("--max-minutes is for generating images; add --data-free.", ctx)
    _check_outputs(model, output, report_folder, force)
    say_engine(recipe, verbose)
    preprocess = preprocess_from_flags(model, flags)
    with make_progress(quiet, verbose) as progress:
        table = run_sensitivity(
            model,
            data,
            recipe,
            preprocess=preprocess,
            progress=progress,
            generator=flags["generator"],
        )
    try:
        if output is not None:
            write_table(output, table)
        if report_folder is not None:
            write_pictures(report_folder, model, table)
    finally:
        # Print the result of the long work, even if the files can't be written.
        if as_json:
            click.echo(json.dumps(table.to_fields(), sort_keys=True))
        elif not quiet:
            print_sweep(table, sizes=bool(verbose))


def _check_outputs(
    model: Path, output: Path | None, report_folder: Path | None, force: bool
) -> None:
    """Find out before the long work whether the table and the report can be written."""
    from onnxq.export.save import check_file, check_new
    from onnxq.report.html import check_folder
    from onnxq.report.sensitivity import CSV, JSON, PAGE

    if output is not None:
        check_file(output, model, force, "table", "-o")
    if report_folder is not None:
        for name in (PAGE, JSON, CSV):
            check_new(report_folder / name, force, "report", "--report")
        check_folder(report_folder)
