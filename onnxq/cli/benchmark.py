"""`onnxq benchmark`: latency side by side."""

from __future__ import annotations

import json
from pathlib import Path

import click

from onnxq.cli.command import PATH, table_command
from onnxq.cli.errors import require_model
from onnxq.cli.start import start_log


@table_command("benchmark")
@click.argument("models", type=PATH, nargs=-1, required=True, metavar="MODEL...")
def benchmark_command(
    models: tuple[Path, ...],
    rounds: int,
    batch_size: int,
    shapes: dict[str, tuple[int, ...]],
    data: Path | None,
    threads: int,
    as_json: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Time models side by side.

    They take turns. Prints the median, its spread and the ratio to the first model.
    """
    from onnxq.report.tables import print_benchmarks
    from onnxq.verify.benchmark import benchmark as run_benchmark

    start_log(verbose)
    results = run_benchmark(
        [require_model(model) for model in models],
        threads=threads,
        rounds=rounds,
        batch_size=batch_size,
        shapes=shapes,
        data=data,
    )
    if as_json:
        click.echo(json.dumps([result.to_fields() for result in results], sort_keys=True))
    elif not quiet:
        print_benchmarks(results)
