"""Options that commands share, and the kinds of values that click does not know."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)
"""A path; what is wrong with it is said in a sentence of our own, with exit code 1."""


class Numbers(click.ParamType[tuple[float, ...]]):
    """Comma-separated numbers, as in `0.485,0.456,0.406`."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """The numbers as a tuple."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"'{value}' is not a list of numbers such as 0.485,0.456,0.406", param, ctx)


class Sides(click.ParamType[tuple[int, ...]]):
    """One length in pixels, or height and width: `256` or `224,320`."""

    name = "pixels"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The lengths as a tuple of one or two."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
            self.fail(f"'{value}' is neither a length nor height,width in pixels", param, ctx)
        return tuple(int(part) for part in parts)


class NamedShape(click.ParamType[tuple[str, tuple[int, ...]]]):
    """An input's shape: `input=1,3,224,224`."""

    name = "name=shape"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """The name and the shape."""
        if isinstance(value, tuple):
            return value[0], value[1]
        name, found, shape = str(value).rpartition("=")
        dims = [part.strip() for part in shape.split(",") if part.strip()]
        if not found or not name or not all(dim.isdecimal() for dim in dims):
            self.fail(f"'{value}' is not a shape such as input=1,3,224,224", param, ctx)
        return name, tuple(int(dim) for dim in dims)


def apply_all(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """One decorator out of several, in the order in which the help lists them."""

    def decorate(command: Command) -> Command:
        return functools.reduce(lambda inner, option: option(inner), reversed(options), command)

    return decorate


generator_option = click.option(
    "--generator",
    type=PATH,
    metavar="FILE",
    help="With --data-free: images of a generator that an earlier run has kept.",
)


def check_samples(ctx: click.Context, data: Path | None, data_free: bool, others: str) -> None:
    """A UsageError where there are no samples, and none are made; `others` go without."""
    if data is None and not data_free:
        raise click.UsageError(f"Missing option '--data'; only {others} without samples.", ctx)


preprocess_options = apply_all(
    click.option(
        "--mean", type=Numbers(), metavar="R,G,B", help="Mean of each channel, pixels in 0-1."
    ),
    click.option(
        "--std", type=Numbers(), metavar="R,G,B", help="Divisor of each channel, pixels in 0-1."
    ),
    click.option(
        "--resize",
        type=Sides(),
        metavar="N",
        help="Resize the shorter side to N pixels, or to H,W without regard to the shape.",
    ),
    click.option("--crop", type=int, metavar="N", help="Cut an NxN square out of the middle."),
    click.option(
        "--layout", type=click.Choice(["nchw", "nhwc"]), help="Order of the model's dimensions."
    ),
    click.option("--bgr", is_flag=True, help="The model's channels are blue, green, red."),
    click.option(
        "--preprocess",
        "preprocess_file",
        type=PATH,
        metavar="FILE",
        help="The same from a TOML file or a Hugging Face preprocessor_config.json.  "
        "[default: found beside or inside the model]",
    ),
)

generator_options = apply_all(
    generator_option,
    click.option(
        "--save-generator",
        type=PATH,
        metavar="FILE",
        help="With --synthesis generator: keep the generator, which serves any other recipe.",
    ),
)

output_options = apply_all(
    click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout."),
    click.option("-q", "--quiet", is_flag=True, help="No progress and no table."),
    click.option("-v", "--verbose", count=True, help="Say more; twice for the log as well."),
)


def threads_option(text: str, default: int | None = None) -> Callable[[Command], Command]:
    """The option `--threads`."""
    kind = click.IntRange(min=1)
    return click.option(
        "--threads", type=kind, default=default, metavar="N", show_default=bool(default), help=text
    )


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
    """Log to stderr where `-vv` asks for it, and else keep libraries from doing so."""
    logging.getLogger("onnx_ir").setLevel(logging.NOTSET if verbose >= 2 else logging.ERROR)
    if verbose >= 2:
        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")
