"""The command line: `onnxq compress`, `inspect`, `evaluate`, `compare` and the others."""

from __future__ import annotations

import importlib

import click

from onnxq import __version__
from onnxq.cli.errors import SentenceGroup
from onnxq.options.option import VERBS

__all__ = ["main"]


class LazyGroup(SentenceGroup):
    """Commands that are imported when they are called.

    Each command is declared in the module of its name, which imports the rest when it runs.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, without an import."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None where there is none."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"onnxq.cli.{cmd_name}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96},
)
@click.version_option(__version__, prog_name="onnxq")
def main() -> None:
    """Compress float ONNX models into smaller, faster ones that stock ONNX Runtime runs."""
