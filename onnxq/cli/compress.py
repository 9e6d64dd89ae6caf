"""`onnxq compress`: quantize a model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxq.cli.command import PATH, option_sources, recipe_from_flags, table_command
from onnxq.cli.errors import require_model, stopped_sentence
from onnxq.cli.start import (
    check_samples,
    make_progress,
    preprocess_from_flags,
    say_engine,
    start_log,
    use_cores,
)
from onnxq.errors import OutputError
from onnxq.options.recipe import Recipe, save_recipe
from onnxq.report.text import printable, size_text

if TYPE_CHECKING:
    from onnxq.verify.result import Result


@table_command("compress")
@click.argument("model", type=PATH)
@click.pass_context
def compress_command(
    ctx: click.Context,
    /,
    model: Path,
    data: Path | None,
    output: Path | None,
    dry_run: bool,
    quiet: bool,
    verbose: int,
    threads: int | None,
    **flags: Any,
) -> None:
    """Compress MODEL with unlabelled samples, or with none."""
    from onnxq.export.save import check_new
    from onnxq.pipeline import compress as run_compress
    from onnxq.report.html import PAGE, check_folder, write_report

    start_log(verbose)
    use_cores(ctx, threads)
    recipe = recipe_from_flags(ctx)
    require_model(model)
    if dry_run:
        _print_plan(ctx, model, recipe, flags["as_json"], flags["allow_worse"])
        return
    check_samples(ctx, data, recipe.data_free, "--data-free and --dry-run go")
    out = output or model.with_name(f"{model.stem}-onnxq.onnx")
    if flags["save_recipe"] is not None:
        _check_recipe_path(flags["save_recipe"], model, out, flags["force"])
    if flags["report_folder"] is not None:
        page = flags["report_folder"] / PAGE
        check_new(page, flags["force"], "report", "--report")
        check_folder(flags["report_folder"])
    say_engine(recipe, verbose)
    preprocess = preprocess_from_flags(model, flags)
    with stopped_sentence(out), make_progress(quiet, verbose) as progress:
        result = run_compress(
            model,
            data,
            recipe,
            out=out,
            preprocess=preprocess,
            force=flags["force"],
            resume=flags["resume"],
            progress=progress,
            generator=flags["generator"],
            save_generator=flags["save_generator"],
            allow_worse=flags["allow_worse"],
        )
    try:
        if flags["save_recipe"] is not None:
            save_recipe(result.recipe, flags["save_recipe"])
        if flags["report_folder"] is not None:
            write_report(flags["report_folder"], model, out, result)
        if result.unsaved is not None:
            raise result.unsaved
    finally:
        # The model is written, even if the report can't be.
        _print_result(result, model, out, flags["as_json"], quiet, verbose)


def _check_recipe_path(path: Path, model: Path, out: Path, force: bool) -> None:
    from onnxq.export.save import check_file

    if path.absolute() == out.absolute():
        raise OutputError(f"the recipe '{path}' is the output; name another with --save-recipe")
    check_file(path, model, force, "recipe", "--save-recipe")


def _print_plan(
    ctx: click.Context, model: Path, recipe: Recipe, as_json: bool, allow_worse: bool
) -> None:
    from onnxq.pipeline import plan_model
    from onnxq.report.inspection import option_rows, plan_rows
    from onnxq.report.tables import print_layers, print_notes, print_options

    report = plan_model(model, recipe, allow_worse=allow_worse)
    rows = plan_rows(report.model, report.plan)
    options = option_rows(recipe, report.plan, option_sources(ctx))
    if as_json:
        fields = {
            "layers": [dataclasses.asdict(row) for row in rows],
            "notes": report.notes,
            "options": options,
        }
        click.echo(json.dumps(fields, sort_keys=True))
        return
    print_options(options)
    print_layers(rows)
    print_notes(report.notes)


def _print_result(
    result: Result, model: Path, out: Path, as_json: bool, quiet: bool, verbose: int
) -> None:
    from onnxq.report.result import result_fields, result_notes
    from onnxq.report.tables import print_costs, print_kernels, print_metrics, print_notes

    metrics = result.metrics
    if as_json:
        click.echo(json.dumps(result_fields(result, model, out), sort_keys=True))
        return
    if not quiet:
        if verbose:
            print_kernels(metrics)
            print_costs(metrics)
        print_metrics(metrics)
        print_notes(result_notes(result))
    else:
        # Told to say little, and not what was asked for.
        for told in filter(None, (metrics.search.get("missed"), metrics.verdict)):
            click.echo(f"note: {printable(told)}", err=True)
    sizes = f"{size_text(metrics.size_before)} -> {size_text(metrics.size_after)}"
    click.echo(f"wrote {printable(str(out))}: {metrics.ratio:.1%} of the original size ({sizes})")
