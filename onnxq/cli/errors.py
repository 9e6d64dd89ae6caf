"""How a command ends: a user's error is one sentence, Ctrl-C is another."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from onnxq.errors import STOPPED, ModelError, OnnxqError
from onnxq.learn.checkpoint import checkpoint_folder


class SentenceGroup(click.Group):
    """A group whose commands end an `OnnxqError` with its sentence and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; anything but the root of our errors keeps its traceback."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # A terminal without × and ─ is no reason to lose a result.
                stream.reconfigure(errors="replace")
        try:
            with warnings.catch_warnings():
                # numpy's, about weights and samples: what comes of them is measured and told.
                warnings.simplefilter("ignore", RuntimeWarning)
                return super().invoke(ctx)
        except OnnxqError as error:
            raise click.ClickException(_sentence(str(error))) from error
        except KeyboardInterrupt:
            click.echo("\nstopped", err=True)
            sys.exit(STOPPED)


@contextmanager
def stopped_sentence(out: Path) -> Iterator[None]:
    """Turn Ctrl-C into a sentence that says how to go on, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        checkpoint = checkpoint_folder(out)
        kept = f"run the same command with --resume to go on from {checkpoint}"
        rest = kept if checkpoint.exists() else "nothing was written"
        click.echo(f"\nstopped; {rest}", err=True)
        sys.exit(STOPPED)


def _sentence(text: str) -> str:
    """The text with a capital and a full stop, on one line."""
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def require_model(path: Path) -> Path:
    """The path, if it is a file.

    Raises:
        ModelError: it is not.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ModelError(f"The model '{path}' {found}; give the path of an ONNX file.")
    return path
