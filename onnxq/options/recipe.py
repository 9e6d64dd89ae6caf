"""The options of a run, as one value that can be kept, compared and repeated."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from onnxq.errors import OutputError, RecipeError
from onnxq.options.contradictions import HOW_TO_LEARN, check_contradictions
from onnxq.options.table import (
    AUTO,
    NONE,
    OFF,
    Augment,
    Calibration,
    GeneratorMode,
    Granularity,
    Learn,
    Loss,
    OptimizerName,
    SynthesisMethod,
    Target,
    check_option,
    listed,
    matches,
    nearest_name,
)
from onnxq.runtime.temporary import write_whole

__all__ = [
    "LayerOverride",
    "Recipe",
    "load_recipe",
    "matches",
    "nearest_name",
    "recipe_from_fields",
    "recipe_toml",
    "save_recipe",
]

METADATA_KEY = "onnxq.recipe"
"""The key of a model's metadata under which the recipe is kept as JSON."""


@dataclass(frozen=True)
class LayerOverride:
    """Settings of the layers that a pattern matches; None leaves the recipe's own.

    Attributes:
        pattern: a glob on the node's name or its op type.
        weight_bits: as in `Recipe`.
        granularity: as in `Recipe`.
        keep_float: whether the layer is not quantized at all.
        symmetric: as in `Recipe`, for the layer's output.
        calibration: as in `Recipe`, for the layer's output.
        codebook: number of centroids, or 'off' for codes.
        activation_bits: as in `Recipe`, 2 to 8, for the layer's output.
    """

    pattern: str
    weight_bits: int | None = None
    granularity: Granularity | None = None
    keep_float: bool | None = None
    symmetric: bool | None = None
    calibration: Calibration | None = None
    codebook: int | str | None = None
    activation_bits: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str) or not self.pattern:
            raise RecipeError(
                f"The pattern of a layer is '{self.pattern}'; expected a glob on node names or "
                "op types."
            )
        settings = [f.name for f in dataclasses.fields(self) if f.name != "pattern"]
        given = [name for name in settings if getattr(self, name) is not None]
        if not given:
            raise RecipeError(
                f"The override of the layers '{self.pattern}' sets nothing; give one of "
                f"{listed(settings)}."
            )
        if self.keep_float and len(given) > 1:
            other = next(name for name in given if name != "keep_float")
            raise RecipeError(
                f"The override of the layers '{self.pattern}' sets both 'keep_float' and "
                f"'{other}', and a float layer has no such setting; remove one of them."
            )
        for name in given:
            check_option(name, getattr(self, name), f"of the layers '{self.pattern}' ")
        if self.codebook == AUTO:
            raise RecipeError(
                f"The option 'codebook' of the layers '{self.pattern}' is 'auto', which chooses "
                "over all layers; give a number, or 'off', and set 'codebook' of the recipe to "
                "'auto'."
            )

    def matches(self, node_name: str, op_type: str) -> bool:
        """Whether the pattern covers this node."""
        return matches(self.pattern, node_name, op_type)


@dataclass(frozen=True)
class Recipe:
    """All options of a run; the defaults are those of the command line.

    Attributes:
        samples: how many samples are used, or made, at most.
        batch_size: samples per batch; None fits it to the memory.
        weight_bits: 2 to 8; 7 keeps sums from saturating on x86 without VNNI. Where settings are
            searched for, the widest codes that are tried.
        first_last_bits: of the weights of the first and the last layer, and the least of their
            inputs; None means those of the rest from 6 on, else 8.
        activation_bits: 2 to 8, of what a layer multiplies with its weights (what is only added,
            joined or pooled has 8), or None to leave activations in float.
        granularity: one weight scale per output channel, or one per tensor.
        symmetric: whether activation ranges are symmetric about zero.
        calibration: how clip thresholds start.
        codebook: centroids of each layer's weights, 2 to 256, or 'auto' for a search over counts
            and widths; None, or 'off', stores the weights' codes.
        bias_centroids: centroids of each layer's biases, 1 to 256; None leaves them as they are.
        learn: what is trained.
        equalize: whether channel ranges are equalized across layers where that helps.
        bias_correction: whether biases are corrected where that helps; those that share
            centroids are not.
        spare: whether tensors that 8 bits are too few for stay float, and those that fewer are too
            few for get 8.
        epochs: passes over the samples; None means the method's own number.
        max_minutes: when training stops at the latest.
        lr: the learning rate, or one for each of some of what is learned; None means the
            method's own.
        optimizer: Adam, or gradient descent with momentum.
        loss: what is brought closer: the outputs, or a classifier's probabilities
            (distillation).
        augment: how images are changed in each pass of learning: 'flip' mirrors half of them,
            'shift' moves them by up to an eighth of their sides, 'auto' moves those that were made
            where weights are learned on them.
        exclude: globs of node names or op types that stay float.
        target: what the export is for.
        max_drop: search settings per layer for the smallest model whose estimated drop is at
            most so many points (of the outputs' RMSE in percent for other models).
        max_size: search settings per layer for the best model of at most so many bytes, or of
            this ratio of the original's.
        seed: of every random choice.
        layers: settings of single layers; where several match, later ones win.
        data_free: whether samples are made from the float network alone.
        synthesis: whether images themselves are learned, or a generator of images.
        synthesis_losses: weights of the losses that they are made with, by kind: 0 switches one
            off, and what is not named has the method's own; None means that of all.
        generator_mode: 'fixed' keeps the images that a generator has made, 'adversarial' lets it go
            on learning against the student while that is learned.

    Raises:
        RecipeError: an option is out of range, or contradicts another.
    """

    samples: int = 512
    batch_size: int | None = None
    weight_bits: int = 8
    first_last_bits: int | None = None
    activation_bits: int | None = 8
    granularity: Granularity = "per-channel"
    symmetric: bool = False
    calibration: Calibration = "mse"
    codebook: int | str | None = None
    bias_centroids: int | None = None
    learn: tuple[Learn, ...] = ("auto",)
    equalize: bool = True
    bias_correction: bool = True
    spare: bool = True
    epochs: int | None = None
    max_minutes: float = 10.0
    lr: float | dict[str, float] | None = None
    optimizer: OptimizerName = "adam"
    loss: Loss = "outputs"
    augment: tuple[Augment, ...] = ("auto",)
    exclude: tuple[str, ...] = ()
    target: Target = "cpu"
    max_drop: float | None = None
    max_size: float | int | None = None
    seed: int = 0
    layers: tuple[LayerOverride, ...] = ()
    data_free: bool = False
    synthesis: SynthesisMethod = "auto"
    synthesis_losses: dict[str, float] | None = None
    generator_mode: GeneratorMode = "fixed"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                check_option(field.name, value)
        for layer in self.layers:
            if not isinstance(layer, LayerOverride):
                raise RecipeError(f"The option 'layers' holds '{layer}'; expected 'LayerOverride'.")
        check_contradictions(self)

    @property
    def searches(self) -> bool:
        """Whether the settings of each layer are searched for."""
        return self.codebook == AUTO or self.max_drop is not None or self.max_size is not None

    def for_sweep(self) -> Recipe:
        """The same with counts and widths left to a search, which learns nothing.

        How samples are made stays.
        """
        layers = tuple(
            each if each.codebook is None else dataclasses.replace(each, codebook=OFF)
            for each in self.layers
        )
        return dataclasses.replace(
            self, codebook=AUTO, max_drop=None, max_size=None, learn=("none",), layers=layers,
            generator_mode="fixed", **HOW_TO_LEARN,
        )  # fmt: skip

    def override_for(self, node_name: str, op_type: str) -> LayerOverride:
        """The settings of one layer, merged: of `layers` the later ones, `exclude` over all.

        What no pattern sets is the recipe's own value. A layer to keep in float has
        `keep_float` True and nothing else; for any other one every field has a value, but
        for `codebook` where there is none ('off' and 'auto' among them).
        """
        merged: dict[str, Any] = {
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
            "granularity": self.granularity,
            "symmetric": self.symmetric,
            "calibration": self.calibration,
            "codebook": self.codebook,
        }
        merged |= self.stated_for(node_name, op_type)
        keep_float = merged.pop("keep_float", False)
        if keep_float or any(matches(each, node_name, op_type) for each in self.exclude):
            return LayerOverride(pattern=node_name or op_type, keep_float=True)
        if merged["codebook"] in (AUTO, OFF):
            merged["codebook"] = None
        return LayerOverride(**{**merged, "pattern": node_name or op_type, "keep_float": False})

    def stated_for(self, node_name: str, op_type: str) -> dict[str, Any]:
        """What `layers` say of one layer, by field: of several the later ones."""
        stated: dict[str, Any] = {}
        for layer in self.layers:
            if layer.matches(node_name, op_type):
                stated |= {k: v for k, v in dataclasses.asdict(layer).items() if v is not None}
        stated.pop("pattern", None)
        return stated

    def to_json(self, *, spelt_out: bool = True) -> str:
        """The recipe as one line of JSON, keys sorted.

        Args:
            spelt_out: every option is there; else only those that are not at their defaults.
        """
        fields, defaults = _to_fields(self), _to_fields(Recipe())
        if not spelt_out:
            fields = {key: value for key, value in fields.items() if value != defaults[key]}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The recipe that `to_json` wrote.

        Raises:
            RecipeError: the text is not JSON, or an option is unknown or out of range.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"The recipe '{text[:80]}' is not JSON: {error}.") from error
        return recipe_from_fields(fields, "the recipe")


def load_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file; options that it does not name have their defaults.

    Raises:
        RecipeError: the file can't be read, or an option is unknown, out of range, or
            contradicts another.
    """
    try:
        fields = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(
            f"Can't read the recipe '{path}' ({reason}); give a TOML file."
        ) from error
    return recipe_from_fields(fields, f"'{path}'")


def recipe_toml(recipe: Recipe) -> str:
    """The recipe as TOML, every option spelt out; what is None is left to its default."""
    return tomli_w.dumps({k: v for k, v in _to_fields(recipe).items() if v is not None})


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Writes the recipe as TOML, every option spelt out.

    Raises:
        OutputError: the file can't be written.
    """
    try:
        write_whole(Path(path), recipe_toml(recipe).encode())
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"Can't write the recipe '{path}' ({reason}); free some space or name another file "
            "with --save-recipe"
        ) from error


def recipe_from_fields(fields: Mapping[str, Any], where: str) -> Recipe:
    """The recipe with these options, spelt as in TOML (with `-` or `_`).

    Args:
        fields: values by option.
        where: how an error names their place.

    Raises:
        RecipeError: an option is unknown, out of range, or contradicts another.
    """
    if not isinstance(fields, Mapping):
        raise RecipeError(f"Expected a table of options in {where}.")
    options = _known(fields, [f.name for f in dataclasses.fields(Recipe)], where)
    layers = options.get("layers", [])
    if not isinstance(layers, list) or not all(isinstance(each, Mapping) for each in layers):
        raise RecipeError(f"Expected 'layers' in {where} to be tables '[[layers]]'.")
    if "layers" in options:
        options["layers"] = tuple(_layer(each, where) for each in layers)
    for name in ("learn", "augment", "exclude"):
        value = options.get(name)
        if isinstance(value, (str, list)):
            options[name] = (value,) if isinstance(value, str) else tuple(value)
    if options.get("activation_bits") == NONE:
        options["activation_bits"] = None
    for name in ("max_minutes", "max_drop"):
        if type(options.get(name)) is int:
            options[name] = float(options[name])
    return Recipe(**options)


def _layer(fields: Mapping[str, Any], where: str) -> LayerOverride:
    known = [field.name for field in dataclasses.fields(LayerOverride)]
    options = _known(fields, known, f"'layers' of {where}")
    if "pattern" not in options:
        raise RecipeError(
            f"An entry of 'layers' in {where} has no 'pattern'; give a glob on node names or "
            "op types."
        )
    return LayerOverride(**options)


def _known(fields: Mapping[str, Any], known: Sequence[str], where: str) -> dict[str, Any]:
    options = {}
    for key, value in fields.items():
        name = key.replace("-", "_")
        if name not in known:
            raise RecipeError(
                f"Unknown option '{key}' in {where}; the nearest known one is "
                f"'{nearest_name(name, known)}'."
            )
        options[name] = value
    return options


def _to_fields(recipe: Recipe) -> dict[str, Any]:
    fields = dataclasses.asdict(recipe)
    fields["layers"] = [
        {key: value for key, value in layer.items() if value is not None}
        for layer in fields["layers"]
    ]
    for name in ("learn", "augment", "exclude"):
        fields[name] = list(fields[name])
    fields["activation_bits"] = recipe.activation_bits or NONE
    return fields
