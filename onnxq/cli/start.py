"""Steps before a command runs: check of samples, number of cores, log."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click


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
