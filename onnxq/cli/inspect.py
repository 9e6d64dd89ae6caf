"""`onnxq inspect`: the layers and contents of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from onnxq.cli.command import PATH, table_command
from onnxq.cli.errors import require_model
from onnxq.cli.start import start_log


@table_command("inspect")
@click.argument("model", type=PATH)
def inspect_command(model: Path, as_json: bool, quiet: bool, verbose: int) -> None:
    """Show what MODEL is made of, and what can be quantized.

    Layers, parameters, bytes, and the reason where a layer can't be quantized; then every byte of
    the file by what it is. On a file that onnxq wrote, its recipe and metrics.
    """
    from onnxq.report.inspection import inspect as run_inspect
    from onnxq.report.tables import print_inspection

    start_log(verbose)
    found: Any = run_inspect(require_model(model))
    if as_json:
        click.echo(json.dumps(found.to_fields(), sort_keys=True))
    else:
        print_inspection(found, layers=not quiet)
