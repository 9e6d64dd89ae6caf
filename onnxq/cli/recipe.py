"""From flags to `Recipe`."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import click
from click.core import ParameterSource

from onnxq.cli.options import PATH, apply_all
from onnxq.cli.values import FileSize, KindNumber, NumberOr, by_kind
from onnxq.options.recipe import Recipe, load_recipe
from onnxq.options.table import AUTO, CHOICES, NONE, OFF, Augment, Learn, SynthesisLoss

_DEFAULT = Recipe()


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
    text="Width of what a layer multiplies with its weights, 2 to 8; 'none' leaves it float.",
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
    type=KindNumber("bn=1"),
    callback=by_kind,
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
    "an eighth of their sides, as 'auto' does with made images that weights are learned on; may "
    "be given more than once.",
    default="auto",
    multiple=True,
    type=click.Choice(get_args(Augment)),
)

_synthesis_options = (_data_free, _synthesis, _synthesis_loss)
"""How samples are made."""

recipe_options = apply_all(
    *_synthesis_options,
    _option(
        "--generator-mode",
        text="Keep the images that the generator has made, or let it go on learning against the "
        "student while that is learned.",
        default=_DEFAULT.generator_mode,
        type=_choice("generator_mode"),
    ),
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
        type=KindNumber("weights=0.001", or_all=True),
        callback=by_kind,
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
    *_synthesis_options,
    _option(
        "--max-minutes",
        text="When making images stops at the latest.",
        default=_DEFAULT.max_minutes,
        type=float,
        metavar="M",
    ),
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
    *_synthesis_options,
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
    return dataclasses.replace(base, **given)
