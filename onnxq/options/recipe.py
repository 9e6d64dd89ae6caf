"""The recipe: the options of a run as one immutable value."""

from __future__ import annotations

import dataclasses
import functools
import json
import tomllib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from onnxq.errors import OutputError, RecipeError
from onnxq.options.contradictions import HOW_TO_LEARN, check_contradictions
from onnxq.options.kinds import listed, matches, nearest_name
from onnxq.options.table import (
    AUTO,
    DEFAULTS,
    OFF,
    RECIPE,
    RENAMED,
    SETTINGS,
    Augment,
    Calibration,
    Effort,
    EngineName,
    GeneratorMode,
    Granularity,
    Learn,
    Loss,
    OptimizerName,
    SynthesisMethod,
    Target,
    Task,
)
from onnxq.runtime.temporary import write_whole

__all__ = [
    "LayerOverride",
    "Recipe",
    "load_recipe",
    "matches",
    "nearest_name",
    "recipe_fields",
    "recipe_from_fields",
    "recipe_toml",
    "save_recipe",
]

METADATA_KEY = "onnxq.recipe"
"""The key of a model's metadata under which the recipe is kept as JSON."""


@dataclass(frozen=True)
class LayerOverride:
    """Settings of the layers that a pattern matches; None means the recipe's own.

    `keep_float` keeps the layer in float. The other fields are as in `Recipe`; `symmetric`,
    `calibration` and `activation_bits` are those of the layer's output.

    Attributes:
        pattern: a glob on the node's name or its op type.

    Raises:
        RecipeError: a setting is out of range, or none is given.
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
            SETTINGS[name].check(getattr(self, name), f"of the layers '{self.pattern}' ")
        if self.codebook == AUTO:
            raise RecipeError(
                f"The option 'codebook' of the layers '{self.pattern}' is 'auto', which chooses "
                "over all layers; give a number, or 'off', and set 'codebook' of the recipe to "
                "'auto'."
            )

    def matches(self, node_name: str, op_type: str) -> bool:
        """Whether the pattern matches this node."""
        return matches(self.pattern, node_name, op_type)


@dataclass(frozen=True)
class Recipe:
    """All options of a run; the defaults are those of the command line.

    Raises:
        RecipeError: an option is out of range, or contradicts another.
    """

    samples: int = DEFAULTS["samples"]
    batch_size: int | None = DEFAULTS["batch_size"]
    task: Task = DEFAULTS["task"]
    weight_bits: int = DEFAULTS["weight_bits"]
    first_last_bits: int | None = DEFAULTS["first_last_bits"]
    activation_bits: int | None = DEFAULTS["activation_bits"]
    granularity: Granularity = DEFAULTS["granularity"]
    symmetric: bool = DEFAULTS["symmetric"]
    calibration: Calibration = DEFAULTS["calibration"]
    codebook: int | str | None = DEFAULTS["codebook"]
    bias_centroids: int | None = DEFAULTS["bias_centroids"]
    learn: tuple[Learn, ...] = DEFAULTS["learn"]
    equalize: bool = DEFAULTS["equalize"]
    bias_correction: bool = DEFAULTS["bias_correction"]
    fallback: bool = DEFAULTS["fallback"]
    effort: Effort = DEFAULTS["effort"]
    epochs: int | None = DEFAULTS["epochs"]
    max_minutes: float = DEFAULTS["max_minutes"]
    lr: float | dict[str, float] | None = DEFAULTS["lr"]
    optimizer: OptimizerName = DEFAULTS["optimizer"]
    loss: Loss = DEFAULTS["loss"]
    augment: tuple[Augment, ...] = DEFAULTS["augment"]
    engine: EngineName = DEFAULTS["engine"]
    exclude: tuple[str, ...] = DEFAULTS["exclude"]
    target: Target = DEFAULTS["target"]
    max_drop: float | None = DEFAULTS["max_drop"]
    max_size: float | int | None = DEFAULTS["max_size"]
    seed: int = DEFAULTS["seed"]
    layers: tuple[LayerOverride, ...] = DEFAULTS["layers"]
    data_free: bool = DEFAULTS["data_free"]
    synthesis: SynthesisMethod = DEFAULTS["synthesis"]
    synthesis_losses: dict[str, float] | None = DEFAULTS["synthesis_losses"]
    generator_mode: GeneratorMode = DEFAULTS["generator_mode"]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                RECIPE[field.name].check(value)
        for layer in self.layers:
            if not isinstance(layer, LayerOverride):
                raise RecipeError(f"The option 'layers' holds '{layer}'; expected 'LayerOverride'.")
        check_contradictions(self)

    @property
    def spare(self) -> bool:
        """The older name of `fallback`."""
        return self.fallback

    @property
    def searches(self) -> bool:
        """Whether the settings of each layer are searched."""
        return self.codebook == AUTO or self.max_drop is not None or self.max_size is not None

    def for_sweep(self) -> Recipe:
        """The recipe for a sweep: nothing is trained, and codebooks and bits are left open.

        How samples are generated stays.
        """
        layers = tuple(
            each if each.codebook is None else dataclasses.replace(each, codebook=OFF)
            for each in self.layers
        )
        return dataclasses.replace(
            self, codebook=AUTO, max_drop=None, max_size=None, learn=("none",), layers=layers,
            **{name: DEFAULTS[name] for name in ("generator_mode", *HOW_TO_LEARN)},
        )  # fmt: skip

    def override_for(self, node_name: str, op_type: str) -> LayerOverride:
        """The settings of one layer, merged: later `layers` take precedence, `exclude` over all.

        What no pattern sets is the recipe's own value. A layer to keep in float has `keep_float`
        True and nothing else. For any other layer every field has a value, except `codebook` where
        there is none ('off' and 'auto' among them).
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
        """The settings in `layers` for one layer, by field; later ones take precedence."""
        stated: dict[str, Any] = {}
        for layer in self.layers:
            if layer.matches(node_name, op_type):
                stated |= {k: v for k, v in dataclasses.asdict(layer).items() if v is not None}
        stated.pop("pattern", None)
        return stated

    def to_json(self, *, spelt_out: bool = True) -> str:
        """The recipe as one line of JSON, keys sorted.

        Args:
            spelt_out: whether options at their defaults are included.
        """
        fields, defaults = recipe_fields(self), recipe_fields(Recipe())
        if not spelt_out:
            fields = {key: value for key, value in fields.items() if value != defaults[key]}
        # Keys keep their older names, for those who read them from files.
        named = {RECIPE[name].was or name: value for name, value in fields.items()}
        return json.dumps(named, sort_keys=True, separators=(",", ":"))

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


def _taking_older_names(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def taking(self: Recipe, *values: Any, **options: Any) -> None:
        for name in RENAMED.keys() & options:
            text = f"the option '{name}' of a recipe is now called '{RENAMED[name]}'"
            warnings.warn(text, DeprecationWarning, stacklevel=2)
            options[RENAMED[name]] = options.pop(name)
        init(self, *values, **options)

    return taking


Recipe.__doc__ = f"{Recipe.__doc__}\n    Attributes:\n" + "\n".join(
    f"        {name}: {option.help}" for name, option in RECIPE.items()
)
Recipe.__init__ = _taking_older_names(Recipe.__init__)  # type: ignore[method-assign]


def load_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file; missing options have their defaults.

    Raises:
        RecipeError: the file can't be read, or an option is unknown, out of range, or contradicts
            another.
    """
    return recipe_from_fields(_read(path), f"'{path}'")


def stated_options(path: Path) -> frozenset[str]:
    """Names of the options that a recipe's TOML file states; errors as of `load_recipe`."""
    names = (key.replace("-", "_") for key in _read(path))
    return frozenset(RENAMED.get(name, name) for name in names)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(
            f"Can't read the recipe '{path}' ({reason}); give a TOML file."
        ) from error


def recipe_toml(recipe: Recipe) -> str:
    """The recipe as TOML with every option; None is left out."""
    return tomli_w.dumps({k: v for k, v in recipe_fields(recipe).items() if v is not None})


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe as TOML with every option.

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
        where: their source, for error messages.

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
    return Recipe(**{name: RECIPE[name].kind.from_toml(value) for name, value in options.items()})


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
    options: dict[str, Any] = {}
    for key, value in fields.items():
        name = key.replace("-", "_")
        name = RENAMED.get(name, name)
        if name not in known:
            raise RecipeError(
                f"Unknown option '{key}' in {where}; the nearest known one is "
                f"'{nearest_name(name, known)}'."
            )
        if name in options:
            raise RecipeError(f"The option '{name}' is given twice in {where}; give it once.")
        options[name] = value
    return options


def recipe_fields(recipe: Recipe) -> dict[str, Any]:
    """Every option of the recipe, as TOML and JSON fields."""
    fields = dataclasses.asdict(recipe)
    fields["layers"] = [
        {key: value for key, value in layer.items() if value is not None}
        for layer in fields["layers"]
    ]
    return {name: RECIPE[name].kind.to_toml(value) for name, value in fields.items()}
