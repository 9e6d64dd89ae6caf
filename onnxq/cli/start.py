"""What the flags of every command set: preprocessing, number of cores, log."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxq.errors import DataError

if TYPE_CHECKING:
    from onnxq.data.preprocess import Preprocess
    from onnxq.options.recipe import Recipe


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
