"""The command line: `onnxq compress`, `inspect`, `evaluate`, `compare` and the others."""

from __future__ import annotations

import click

from onnxq.cli.benchmark import benchmark_command
from onnxq.cli.compare import compare_command
from onnxq.cli.compress import compress_command
from onnxq.cli.distill import distill_command
from onnxq.cli.errors import SentenceGroup
from onnxq.cli.evaluate import evaluate_command
from onnxq.cli.inspect import inspect_command
from onnxq.cli.sensitivity import sensitivity_command
from onnxq.version import VERSION

__all__ = ["main"]


@click.group(
    cls=SentenceGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96},
)
@click.version_option(VERSION, prog_name="onnxq")
def main() -> None:
    """Compress float ONNX models into smaller, faster ones that stock ONNX Runtime runs."""


for _command in (
    compress_command,
    inspect_command,
    evaluate_command,
    compare_command,
    benchmark_command,
    sensitivity_command,
    distill_command,
):
    main.add_command(_command)
