"""The end of a command: a user error is one sentence, Ctrl-C is another."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from onnxq.errors import STOPPED, ModelError, OnnxqError, OutputError, reason_of
from onnxq.report.text import printable, sentence

logger = logging.getLogger(__name__)

FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS))
"""What a system says where nothing more can be written."""


class SentenceGroup(click.Group):
    """A group whose commands end an error with a sentence and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; `-vv` logs the traceback of an error as well."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # A terminal without × and ─ is no reason to lose a result.
                stream.reconfigure(errors="replace")
        try:
            _check_working_folder()
            with warnings.catch_warnings():
                # numpy's warnings about weights and samples: their effect is measured and reported.
                warnings.simplefilter("ignore", RuntimeWarning)
                # Pillow's of damaged metadata in a picture.
                warnings.simplefilter("ignore", UserWarning)
                return super().invoke(ctx)
        except KeyboardInterrupt:
            _stop()
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if _interrupted(error):
                _stop()
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                # Whoever read the output has seen enough; click knows what to do.
                raise
            logger.debug("the command ended with an error", exc_info=error)
            _let_go_of_stdout()
            raise click.ClickException(sentence(_described(error))) from error


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C caused this error: modules may raise another one while they load."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False


def _stop() -> NoReturn:
    click.echo("\nstopped", err=True)
    sys.exit(STOPPED)


def _check_working_folder() -> None:
    """Raises OutputError where the working folder was deleted."""
    try:
        Path.cwd()
    except OSError as error:
        raise OutputError(
            "the working folder does not exist any more; change to another and run the command "
            "again"
        ) from error


def _let_go_of_stdout() -> None:
    """Keep Python from writing to a closed stdout again when it ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        sys.stdout = io.StringIO()


def _described(error: Exception) -> str:
    """An error as a sentence for the user; an unexpected one is called a defect of onnxq."""
    if isinstance(error, OnnxqError):
        return str(error)
    if isinstance(error, MemoryError):
        return (
            "there is not enough memory for this model and these samples; give a smaller "
            "--batch-size or fewer --samples, or use a machine with more"
        )
    if isinstance(error, OSError) and error.errno in FULL:
        where = "" if error.filename is None else f" '{os.fsdecode(error.filename)}'"
        return f"can't write{where or ' the output'} ({error.strerror}); free some space and retry"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"internal error: {type(error).__name__} in {Path(place.filename).name}:{place.lineno} "
        f"({reason_of(error)}); this is a defect of onnxq: run again with -vv and report the "
        "traceback"
    )


@contextmanager
def stopped_sentence(out: Path) -> Iterator[None]:
    """Turn Ctrl-C into a sentence that says how to resume, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        from onnxq.train.checkpoint import checkpoint_folder

        checkpoint = checkpoint_folder(out)
        kept = f"run the same command with --resume to go on from {printable(str(checkpoint))}"
        rest = kept if checkpoint.exists() else "nothing was written"
        click.echo(f"\nstopped; {rest}", err=True)
        sys.exit(STOPPED)


def require_model(path: Path) -> Path:
    """The path, if it is a file.

    Raises:
        ModelError: it is not.
    """
    if not path.is_file():
        exists = "is not an ordinary file" if path.exists() else "does not exist"
        found = "is a folder" if path.is_dir() else exists
        raise ModelError(f"The model '{path}' {found}; give the path of an ONNX file.")
    return path
