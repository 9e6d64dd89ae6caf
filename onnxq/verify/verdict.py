"""Whether a result is good enough to be written, by its metrics on held-out samples."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.errors import WorseError
from onnxq.options.recipe import Recipe
from onnxq.plan.spec import BYTE_BITS
from onnxq.verify.outputs import Comparison

BROKEN_AGREEMENT = 0.5
"""Share of equal decisions below which a classifier is broken."""

BROKEN_DB, BROKEN_LOW_BIT_DB = 10.0, 3.0
"""SQNR of the worst output below which a result is broken: at 8 bits, and where fewer were asked
for."""

DOUBTFUL_DB = 15.0
"""SQNR of the worst output below which a result is written with a warning."""

METHODS = ("learn", "calibration", "granularity", "symmetric", "equalize", "bias_correction",
           "fallback")  # fmt: skip
"""Options that name a method: whoever sets one gets what it gives."""


@dataclass(frozen=True)
class Verdict:
    """A fault of a result.

    Attributes:
        broken: whether the result is useless; otherwise it is doubtful.
        text: the metrics, and the option that would help, as a clause.
    """

    broken: bool
    text: str

    def __str__(self) -> str:
        """The fault as a sentence."""
        return f"the compressed model is {'broken' if self.broken else 'doubtful'}: {self.text}"


def find_verdict(outputs: Comparison, recipe: Recipe) -> Verdict | None:
    """The fault of a result; None where it has none.

    A classifier is evaluated by its decisions, any other model by its worst float output.

    Args:
        outputs: the result's differences from the original, on held-out samples.
        recipe: the options that led to them.
    """
    remedy = _remedy(recipe)
    agreement = outputs.agreement
    if agreement is not None and agreement < BROKEN_AGREEMENT:
        return Verdict(
            True,
            f"it decides as the original on {agreement:.1%} of {outputs.samples} held-out "
            f"samples, under {BROKEN_AGREEMENT:.0%}; {remedy}",
        )
    if not outputs.sqnr_db:
        return None
    name, decibels = min(outputs.sqnr_db.items(), key=lambda each: each[1])
    limit = BROKEN_LOW_BIT_DB if _has_low_bits(recipe) else BROKEN_DB
    decides = outputs.kl is not None
    if decibels >= DOUBTFUL_DB:
        return None
    broken = not decides and decibels < limit
    return Verdict(
        broken,
        f"its output '{name}' has an SQNR of {decibels:.1f} dB on {outputs.samples} held-out "
        f"samples, under {limit if broken else DOUBTFUL_DB:.0f} dB; {remedy}",
    )


def check_verdict(verdict: Verdict, recipe: Recipe, *, resumable: bool) -> None:
    """Refuse a broken result, unless the recipe names the method that led to it.

    Args:
        verdict: the fault of the result.
        recipe: the options that led to it.
        resumable: whether a run that allows a worse result could resume from this one.

    Raises:
        WorseError: the result is broken.
    """
    if not verdict.broken or names_method(recipe):
        return
    at_once = ", at once with --resume" if resumable else ""
    raise WorseError(
        f"{verdict}; nothing was written, and --allow-worse writes it all the same{at_once}"
    )


def names_method(recipe: Recipe) -> bool:
    """Whether the recipe names a method, for the whole model or for some layers."""
    default = Recipe()
    named = any(getattr(recipe, name) != getattr(default, name) for name in METHODS)
    return named or any(
        getattr(layer, name) is not None
        for layer in recipe.layers
        for name in ("granularity", "symmetric", "calibration")
    )


def size_remedy(recipe: Recipe) -> str:
    """The option that may make a file smaller, for a message."""
    if recipe.activation_bits is not None:
        return "--activation-bits none takes fewer nodes"
    return "--weight-bits 4 takes fewer bytes where layers are large"


def _has_low_bits(recipe: Recipe) -> bool:
    """Whether fewer than 8 bits were asked for, of weights, biases or activations."""
    widths = [recipe.weight_bits, recipe.first_last_bits, recipe.activation_bits]
    for layer in recipe.layers:
        widths += [layer.weight_bits, layer.activation_bits]
    tables = [recipe.codebook, recipe.bias_centroids, *(layer.codebook for layer in recipe.layers)]
    fewer = any(width is not None and width < BYTE_BITS for width in widths)
    return fewer or recipe.searches or any(isinstance(count, int) for count in tables)


def _remedy(recipe: Recipe) -> str:
    if _has_low_bits(recipe):
        return "more bits help (--weight-bits, --activation-bits)"
    if recipe.data_free:
        return "samples of the model's own kind help (--data)"
    if recipe.activation_bits is not None:
        return "--activation-bits none keeps activations in float, which helps"
    return "--exclude keeps layers in float, and 'onnxq sensitivity' finds the worst of them"
