"""`onnxq compare`: the noise of each layer of a compressed file against the original's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxq.cli.command import PATH, table_command
from onnxq.cli.errors import require_model
from onnxq.cli.start import make_progress, preprocess_from_flags, start_log, use_cores


@table_command("compare")
@click.argument("original", type=PATH, metavar="FLOAT")
@click.argument("compressed", type=PATH, metavar="QUANTIZED")
@click.pass_context
def compare_command(
    ctx: click.Context,
    /,
    original: Path,
    compressed: Path,
    data: Path,
    samples: int,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: int,
    **flags: Any,
) -> None:
    """Compare each layer of QUANTIZED with its original FLOAT.

    Prints the signal-to-noise ratio (SQNR) of each layer's output, which has the noise of the
    layers before it too, and of its weights alone; worst first. QUANTIZED is a file of compress.
    """
    from onnxq.report.tables import print_comparison
    from onnxq.verify.compare import compare as run_compare

    start_log(verbose)
    use_cores(ctx, threads)
    require_model(original)
    preprocess = preprocess_from_flags(require_model(compressed), flags)
    with make_progress(quiet, verbose) as progress:
        result = run_compare(
            original,
            compressed,
            data,
            preprocess=preprocess,
            samples=samples,
            progress=progress,
        )
    if as_json:
        click.echo(result.to_json())
    elif not quiet:
        print_comparison(result)
