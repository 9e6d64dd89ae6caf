"""From flags to `Recipe`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import click
from click.core import ParameterSource

from onnxq.cli.options import PATH, apply_all
from onnxq.errors import RecipeError
from onnxq.options import AUTO, CHOICES, NONE, OFF, Augment, Learn, SynthesisLoss
from onnxq.recipe import Recipe, load_recipe

_DEFAULT = Recipe()


class NumberOr(click.ParamType[int | str | None]):
    """A whole number, or one of some words.

    Args:
        what: what is counted, for the error.
        words: what each word stands for.
    """

    name = "number"

    def __init__(self, what: str, words: Mapping[str, str | None]) -> None:
        self._what, self._words = what, words

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str | None:
        """The number, or what the word stands for."""
        if value is None or isinstance(value, int):
            return value
        word = str(value).lower()
        if word in self._words:
            return self._words[word]
        if not word.isdecimal():
            words = " or ".join(f"'{each}'" for each in self._words)
            self.fail(f"'{value}' is neither a number of {self._what} nor {words}", param, ctx)
        return int(word)


class FileSize(click.ParamType[float | int]):
    """Bytes, as in `150000`, or a ratio, as in `0.2` or `20%`."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | int:
        """A whole number of bytes, or a ratio."""
        text = str(value)
        try:
            if text.endswith("%"):
                return float(text[:-1]) / 100
            return int(text) if text.isdecimal() else float(text)
        except ValueError:
            self.fail(f"'{value}' is neither a number of bytes nor a ratio such as 0.2", param, ctx)


def _choice(name: str) -> click.Choice[str]:
    return click.Choice([str(each) for each in CHOICES[name]])


def _option(*names: str, text: str, default: object = None, **settings: Any) -> Any:
    """An option whose default is the recipe's own, which a recipe file may change."""
    shown = "" if default is None else f"  [default: {default}]"
    return click.option(*names, help=text + shown, **settings)


_weight_bits = _option(
    "--weight-bits",
    text="Width of a weight, 2 to 8; where widths are searched for, the largest.",
    default=_DEFAULT.weight_bits,
    type=int,
    metavar="N",
)
_first_last_bits = _option(
    "--first-last-bits",
    text="Width of the weights of the first and the last layer.",
    default="as the rest from 6 bits on, else 8",
    type=int,
    metavar="N",
)
_activation_bits = _option(
    "--activation-bits",
    text="Width of an activation, 2 to 8; 'none' leaves activations float.",
    default=_DEFAULT.activation_bits,
    type=NumberOr("bits", {NONE: None}),
    metavar="N|none",
)
_granularity = _option(
    "--granularity",
    text="One weight scale per output channel, or per tensor.",
    default=_DEFAULT.granularity,
    type=_choice("granularity"),
)
_equalize = _option(
    "--equalize/--no-equalize",
    text="Equalize channel ranges where that helps.",
    default="equalize",
)
_bias_correction = _option(
    "--bias-correction/--no-bias-correction",
    text="Correct biases where that helps.",
    default="bias-correction",
)
_exclude = _option(
    "--exclude",
    text="Layers to leave in float, a glob on names or op types; may repeat.",
    multiple=True,
    metavar="PATTERN",
)
_target = _option(
    "--target",
    text="What the export is for: ONNX Runtime on any CPU, on x86 without VNNI, or accelerators "
    "that take INT4 tensors.",
    default=_DEFAULT.target,
    type=_choice("target"),
)
_samples = _option(
    "--samples",
    text="Samples used, or made, at most.",
    default=_DEFAULT.samples,
    type=int,
    metavar="N",
)
_batch_size = _option(
    "--batch-size", text="Samples per batch.", default="fitted to memory", type=int, metavar="N"
)
_seed = _option(
    "--seed", text="Of every random choice.", default=_DEFAULT.seed, type=int, metavar="N"
)
_recipe_file = _option(
    "--recipe",
    "recipe_file",
    text="Options and per-layer settings from a TOML file; flags go before.",
    type=PATH,
    metavar="FILE",
)

_data_free = _option(
    "--data-free",
    text="No samples: images are made from the float network alone, and used like any others.",
    is_flag=True,
)
_synthesis = _option(
    "--synthesis",
    text="Learn the images themselves, or a generator of images.",
    default=_DEFAULT.synthesis,
    type=_choice("synthesis"),
)
_synthesis_loss = _option(
    "--synthesis-loss",
    "synthesis_losses",
    text="Weight of a loss that images are made with, of "
    f"{', '.join(get_args(SynthesisLoss))}; 0 switches it off; may be given more than once.",
    multiple=True,
    metavar="KIND=X",
)
_epochs = _option("--epochs", text="Passes over the samples.", type=int, metavar="N")
_max_minutes = _option(
    "--max-minutes",
    text="When training stops at the latest.",
    default=_DEFAULT.max_minutes,
    type=float,
    metavar="M",
)
_loss = _option(
    "--loss",
    text="What is brought closer to the original: the outputs, or a classifier's probabilities "
    "(distillation).",
    default=_DEFAULT.loss,
    type=_choice("loss"),
)
_augment = _option(
    "--augment",
    text="Change images in each pass of learning: mirror half of them, or move them by up to "
    "an eighth of their sides; may be given more than once.",
    multiple=True,
    type=click.Choice(get_args(Augment)),
)

recipe_options = apply_all(
    _data_free,
    _synthesis,
    _synthesis_loss,
    _weight_bits,
    _first_last_bits,
    _activation_bits,
    _granularity,
    _option(
        "--symmetric/--asymmetric",
        text="Ranges of activations about zero, or not.",
        default="asymmetric",
    ),
    _option(
        "--calibration",
        text="How clip thresholds start.",
        default=_DEFAULT.calibration,
        type=_choice("calibration"),
    ),
    _option(
        "--codebook",
        text="Store weights as indices into K centroids for each layer, 2 to 256; 'auto' finds a "
        "count, or a width of codes, for each.",
        default="off",
        type=NumberOr("centroids", {AUTO: AUTO, OFF: OFF}),
        metavar="K|auto|off",
    ),
    _option(
        "--max-drop",
        text="Find widths of codes per layer, with '--codebook auto' counts of centroids too, for "
        "the smallest model with at most this estimated drop of the top-1 accuracy, in points; for "
        "other models the RMSE of the outputs, in percent.",
        type=float,
        metavar="X",
    ),
    _option(
        "--max-size",
        text="Find the same for the best model within a number of bytes, or within a ratio of the "
        "original.",
        type=FileSize(),
        metavar="BYTES|RATIO",
    ),
    _option(
        "--bias-centroids",
        text="Replace the biases of each quantized layer by K centroids, 1 to 256; they are not "
        "corrected then.",
        default="off",
        type=int,
        metavar="K",
    ),
    _option(
        "--learn",
        text="What is trained; may be given more than once.",
        default="auto",
        multiple=True,
        type=click.Choice(get_args(Learn)),
    ),
    _equalize,
    _bias_correction,
    _option(
        "--spare/--no-spare",
        text="Leave tensors in float that 8 bits are too few for; give 8 to those that fewer "
        "are too few for.",
        default="spare",
    ),
    _epochs,
    _max_minutes,
    _option(
        "--lr",
        text="Learning rate, of all that is learned or of one kind, as in weights=0.001; may be "
        "given more than once.",
        multiple=True,
        metavar="[KIND=]X",
    ),
    _option(
        "--optimizer",
        text="Adam, or gradient descent with momentum.",
        default=_DEFAULT.optimizer,
        type=_choice("optimizer"),
    ),
    _loss,
    _augment,
    _exclude,
    _target,
    _samples,
    _batch_size,
    _seed,
    _recipe_file,
)

sweep_options = apply_all(
    _weight_bits,
    _first_last_bits,
    _activation_bits,
    _granularity,
    _equalize,
    _bias_correction,
    _exclude,
    _target,
    _samples,
    _batch_size,
    _seed,
    _recipe_file,
)
"""Those that change what a sweep measures."""

distil_options = apply_all(
    _data_free,
    _synthesis,
    _synthesis_loss,
    _epochs,
    _max_minutes,
    _option("--lr", text="Learning rate of Adam.", type=float, metavar="X"),
    _loss,
    _augment,
    _samples,
    _batch_size,
    _seed,
)
"""Those that say how a float student is trained."""


def recipe_from_flags(ctx: click.Context) -> Recipe:
    """The recipe of `--recipe`, or the default one, with the flags that were given.

    Raises:
        RecipeError: the file can't be read, or an option is out of range.
    """
    file = ctx.params.get("recipe_file")
    base = _DEFAULT if file is None else load_recipe(file)
    given = {
        field.name: ctx.params[field.name]
        for field in dataclasses.fields(Recipe)
        if ctx.get_parameter_source(field.name) is ParameterSource.COMMANDLINE
    }
    if isinstance(given.get("lr"), tuple):
        given["lr"] = _rates(given["lr"])
    if "synthesis_losses" in given:
        given["synthesis_losses"] = _weights(given["synthesis_losses"])
    return dataclasses.replace(base, **given)


def _rates(given: Sequence[str]) -> float | dict[str, float]:
    """One learning rate for all, or one for each kind that is named.

    Raises:
        RecipeError: a rate is not a number or given twice, or one for all stands beside others.
    """
    rates: dict[str, float] = {}
    for each in given:
        kind, _, number = each.rpartition("=")
        if kind in rates:
            raise RecipeError(f"--lr is given twice for {kind or 'all'}; give it once.")
        try:
            rates[kind] = float(number)
        except ValueError:
            raise RecipeError(
                f"--lr is '{each}'; expected a number, or a kind and a number as in weights=0.001."
            ) from None
    if "" in rates and len(rates) > 1:
        raise RecipeError("--lr is given for all and for single kinds; give one or the other.")
    return rates.get("", rates)


def _weights(given: Sequence[str]) -> dict[str, float]:
    """The weight of each loss that is named.

    Raises:
        RecipeError: one is not a name and a number.
    """
    try:
        return {kind: float(number) for kind, _, number in (e.rpartition("=") for e in given)}
    except ValueError:
        raise RecipeError(
            f"--synthesis-loss is {', '.join(given)}; expected a kind and a number as in bn=1."
        ) from None
