"""What every command begins with: preprocessing, number of cores, log, progress on stderr."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxq.errors import DataError
from onnxq.progress import Progress as Listener
from onnxq.progress import Silent
from onnxq.report.text import printable

if TYPE_CHECKING:
    from onnxq.data.preprocess import Preprocess
    from onnxq.options.recipe import Recipe
if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def check_samples(ctx: click.Context, data: Path | None, data_free: bool, others: str) -> None:
    """A UsageError where samples are neither given nor generated; `others` need none."""
    if data is None and not data_free:
        raise click.UsageError(f"Missing option '--data'; only {others} without samples.", ctx)


def use_cores(ctx: click.Context, count: int | None) -> None:
    """Let this command run on at most so many cores; undone when the command ends."""
    if count is None:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise click.UsageError("--threads can't be enforced on this system; leave it out.")
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:count])
    ctx.call_on_close(lambda: os.sched_setaffinity(0, allowed))


def start_log(verbose: int) -> None:
    """Log to stderr with `-vv`; otherwise keep libraries from logging."""
    logging.getLogger("onnx_ir").setLevel(logging.NOTSET if verbose >= 2 else logging.ERROR)
    if verbose >= 2:
        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")


def say_engine(recipe: Recipe, verbose: int) -> None:
    """With `-v`, a line on stderr says what computes gradients.

    Raises:
        EngineError: the engine that the recipe asks for is not installed.
    """
    from onnxq.engine import describe_engine

    if verbose:
        click.echo(f"Engine: {describe_engine(recipe.engine)}", err=True)


def preprocess_from_flags(model: Path, flags: Mapping[str, Any]) -> Preprocess | None:
    """The preprocessing of the flags; None where there are none.

    A flag overrides the same setting of `--preprocess`, or else of the model.

    Raises:
        DataError: a setting is out of range, or a flag is given without mean and std.
    """
    from onnxq.data.preprocess import Preprocess, find_preprocess, load_preprocess
    from onnxq.verify.opened import open_model

    names = ("mean", "std", "resize", "crop", "layout", "bgr")
    given = {name: flags[name] for name in names if flags[name] not in (None, False)}
    file = flags["preprocess_file"]
    base = None if file is None else load_preprocess(file)
    if not given:
        return base
    if "mean" in given and "std" in given and base is None:
        return Preprocess(**given)
    if base is None:
        base = find_preprocess(model, open_model(model).metadata)
    if base is None:
        raise DataError(
            f"--{next(iter(given))} is given but '{model}' has no other preprocessing; give "
            "both --mean and --std, or --preprocess."
        )
    return dataclasses.replace(base, **given)


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
