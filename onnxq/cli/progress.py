"""Progress on stderr: a bar with the time left, plain lines, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from onnxq.progress import Progress as Listener
from onnxq.progress import Silent
from onnxq.report.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SECONDS = 2.0
"""Between two lines of a stage at least."""


@contextmanager
def make_progress(quiet: bool, verbose: int) -> Iterator[Listener]:
    """The listener for stderr: a bar in a terminal, lines elsewhere if asked for, else silent."""
    if quiet or not (sys.stderr.isatty() or verbose):
        yield Silent()
    elif not sys.stderr.isatty():
        yield Lines()
    else:
        bar = Bar()
        try:
            yield bar
        finally:
            # Also after an error in the middle of a stage: the cursor is hidden until then.
            bar.finish()


class Bar:
    """One bar per stage, with finished steps and the time left."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID

    def start(self, stage: str, total: int) -> None:
        """A stage of `total` steps begins."""
        from rich import progress
        from rich.console import Console

        self.finish()
        self._progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[text]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(stage, total=total, text="")
        self._progress.start()

    def at(self, done: int, text: str = "") -> None:
        """`done` steps of the stage are finished."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, text=text)

    def finish(self) -> None:
        """The stage has ended."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class Lines:
    """A line when a stage begins, and one every few seconds where steps have details."""

    def __init__(self) -> None:
        self._stage, self._total, self._said = "", 0, 0.0

    def start(self, stage: str, total: int) -> None:
        """A stage of `total` steps begins."""
        self._stage, self._total, self._said = stage, total, 0.0
        click.echo(printable(stage), err=True)

    def at(self, done: int, text: str = "") -> None:
        """`done` steps of the stage are finished."""
        now = time.monotonic()
        if text and now - self._said >= SECONDS:
            self._said = now
            click.echo(printable(f"{self._stage}: {done}/{self._total} {text}"), err=True)

    def finish(self) -> None:
        """The stage has ended."""
