"""`onnxq benchmark`: latency side by side."""

from __future__ import annotations

import json
from pathlib import Path

import click

from onnxq.cli.errors import require_model
from onnxq.cli.options import PATH, NamedShape, output_options, start_log, threads_option
from onnxq.options.table import BENCHMARK_ROUNDS


@click.command("benchmark")
@click.argument("models", type=PATH, nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=BENCHMARK_ROUNDS,
    show_default=True,
    metavar="N",
    help="Runs of each model.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Samples per run.",
)
@click.option(
    "--shape",
    "shapes",
    type=NamedShape(),
    multiple=True,
    metavar="NAME=D,D,...",
    help="Shape of an input with free dimensions; may repeat.",
)
@click.option(
    "--data", type=PATH, metavar="PATH", help="Feed the first samples there, not random values."
)
@threads_option("Threads inside one operator.", default=1)
@output_options
def benchmark_command(
    models: tuple[Path, ...],
    rounds: int,
    batch_size: int,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    data: Path | None,
    threads: int,
    as_json: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Time models side by side.

    They take turns, on random values; printed are the median, its spread and the ratio to the
    first model.
    """
    from onnxq.report.tables import print_benchmarks
    from onnxq.verify.benchmark import benchmark as run_benchmark

    start_log(verbose)
    results = run_benchmark(
        [require_model(model) for model in models],
        threads=threads,
        rounds=rounds,
        batch_size=batch_size,
        shapes=dict(shapes),
        data=data,
    )
    if as_json:
        click.echo(json.dumps([result.to_fields() for result in results], sort_keys=True))
    elif not quiet:
        print_benchmarks(results)
