"""What values each option may have, and how names are matched."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from onnxq.errors import RecipeError

Granularity = Literal["per-channel", "per-tensor"]
Calibration = Literal["max", "mse", "aciq", "kl", "percentile"]
Learn = Literal[
    "none",
    "thresholds",
    "rounding",
    "steps",
    "weights",
    "codebooks",
    "float-layers",
    "biases",
    "auto",
]
Target = Literal["cpu", "cpu-avx2", "int4"]
Loss = Literal["outputs", "distillation"]
OptimizerName = Literal["adam", "sgd"]
Augment = Literal["none", "flip", "shift", "auto"]
SynthesisMethod = Literal["auto", "distilled", "generator"]
GeneratorMode = Literal["fixed", "adversarial"]
SynthesisLoss = Literal["inception", "bn", "bn-moments", "adversarial"]

COMPARED_SAMPLES = 256
"""Samples on which a compressed model is compared with its original at most.

Beyond, an SQNR moves by tenths of a decibel.
"""
EVALUATION_BATCH = 16
"""Samples per batch of an evaluation."""
BENCHMARK_ROUNDS = 50
"""Runs of each model whose latency is measured."""

INT4_BITS = 4
"""Codes of so many bits at most fit a tensor of type INT4."""

AUTO = "auto"
"""A count of centroids for each layer, found by a search."""
OFF = "off"
"""No codebook, whatever a recipe or its layers say otherwise."""
NONE = "none"
"""How `activation_bits = None` is spelt in TOML, which has no null."""

RATES: tuple[str, ...] = tuple(
    each for each in get_args(Learn) if each not in ("none", "rounding", AUTO)
)
"""What has a learning rate of its own."""

CHOICES: dict[str, tuple[Any, ...]] = {
    "granularity": get_args(Granularity),
    "calibration": get_args(Calibration),
    "target": get_args(Target),
    "loss": get_args(Loss),
    "optimizer": get_args(OptimizerName),
    "symmetric": (False, True),
    "equalize": (False, True),
    "bias_correction": (False, True),
    "spare": (False, True),
    "data_free": (False, True),
    "synthesis": get_args(SynthesisMethod),
    "generator_mode": get_args(GeneratorMode),
    "keep_float": (False, True),
}
SEVERAL: dict[str, tuple[str, ...]] = {"learn": get_args(Learn), "augment": get_args(Augment)}
"""Options that may be several things at once, but for 'none' and 'auto', which stand alone."""
LEAST: dict[str, int] = {"samples": 1, "batch_size": 1, "epochs": 1, "seed": 0}
POSITIVE = ("max_minutes", "max_drop")
BETWEEN: dict[str, tuple[int, int]] = {
    "weight_bits": (2, 8),
    "first_last_bits": (2, 8),
    "activation_bits": (2, 8),
    "codebook": (2, 256),
    "bias_centroids": (1, 256),
}
"""An index of a centroid has at most 8 bits."""
WORDS: dict[str, tuple[str | None, ...]] = {"codebook": (AUTO, OFF), "activation_bits": (None,)}
"""Words that may stand for a number; None is spelt 'none'."""


def check_option(name: str, value: Any, where: str = "") -> None:
    """Raises RecipeError where the value of one option is of the wrong kind or range.

    Args:
        name: the option's field.
        value: what it was set to.
        where: whose option it is, as `of the layers 'conv*' `.
    """
    expected = _expected(name, value)
    if expected:
        found = (listed(value) or "empty") if isinstance(value, tuple) else f"'{value}'"
        raise RecipeError(f"The option '{name}' {where}is {found}; expected {expected}.")


def listed(values: Iterable[Any]) -> str:
    """Values in quotes, one after the other."""
    return ", ".join(f"'{_spelt(value)}'" for value in values)


def nearest_name(pattern: str, names: Iterable[str]) -> str | None:
    """The name most like a pattern that matches nothing; None where there are no names."""
    folded = {name.lower(): name for name in reversed(list(names))}
    close = get_close_matches(pattern.lower().strip("*?"), folded, n=1, cutoff=0.0)
    return folded[close[0]] if close else None


def matches(pattern: str, node_name: str, op_type: str) -> bool:
    """Whether a glob covers a node's name or its op type; capitals count."""
    return fnmatchcase(node_name, pattern) or fnmatchcase(op_type, pattern)


def _expected(name: str, value: Any) -> str | None:
    """What an option should have been; None where it is so."""
    if name in CHOICES:
        # The type counts too: 1 == True and 8.0 == 8.
        fits = any(value == each and type(value) is type(each) for each in CHOICES[name])
        return None if fits else " or ".join(f"'{_spelt(each)}'" for each in CHOICES[name])
    if name in LEAST:
        fits = type(value) is int and value >= LEAST[name]
        return None if fits else f"a whole number of at least {LEAST[name]}"
    if name in BETWEEN:
        low, high = BETWEEN[name]
        words = WORDS.get(name, ())
        fits = value in words or (type(value) is int and low <= value <= high)
        return (
            None
            if fits
            else " or ".join([f"a whole number from {low} to {high}", *map(_spelt, words)])
        )
    if name in POSITIVE:
        return None if _is_positive(value) else "a number above 0"
    if name == "lr":
        return _expected_rates(value)
    if name == "synthesis_losses":
        return _expected_weights(value)
    if name == "max_size":
        fits = (type(value) is float and 0 < value < 1) or (type(value) is int and value > 1)
        return None if fits else "a ratio between 0 and 1, or a whole number of bytes"
    if name in SEVERAL:
        allowed = SEVERAL[name]
        fits = isinstance(value, tuple) and bool(value) and all(e in allowed for e in value)
        return None if fits else f"one or more of {listed(allowed)}"
    if name == "exclude":
        fits = isinstance(value, tuple) and all(isinstance(e, str) and e for e in value)
        return None if fits else "a list of globs on node names or op types"
    return None if isinstance(value, tuple) else "a list"


def _expected_rates(value: Any) -> str | None:
    """What learning rates should have been: one number, or one for each of some groups."""
    rates = value if isinstance(value, dict) else {"weights": value}
    fits = bool(rates) and all(k in RATES and _is_positive(v) for k, v in rates.items())
    return None if fits else f"a number above 0, or such numbers of some of {listed(RATES)}"


def _expected_weights(value: Any) -> str | None:
    """What the weights of losses should have been."""
    kinds = get_args(SynthesisLoss)
    fits = isinstance(value, dict) and all(
        k in kinds and (v == 0 or _is_positive(v)) for k, v in value.items()
    )
    return None if fits else f"numbers of at least 0 of some of {listed(kinds)}"


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")


def _spelt(value: Any) -> str:
    if value is None:
        return NONE
    return str(value).lower() if isinstance(value, bool) else str(value)
