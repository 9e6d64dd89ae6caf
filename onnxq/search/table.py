"""The table of a sweep: the effect of each setting of each layer alone.

From it come the candidate settings of an allocation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.options.table import OFF
from onnxq.plan.spec import LayerSpec, Plan, weight_bytes

Measure = Literal["kl", "error"]

TITLES: dict[Measure, str] = {
    "kl": "KL divergence, nats",
    "error": "relative squared error of the outputs",
}
"""Names of the measures, for users."""


@dataclass(frozen=True, order=True)
class Setting:
    """How the weights of one layer are stored; with both None they stay float.

    Attributes:
        codebook: number of centroids.
        weight_bits: bit width of integer weights.
    """

    codebook: int | None = None
    weight_bits: int | None = None

    @property
    def label(self) -> str:
        """`K=16`, `8 bits` or `float`."""
        if self.codebook is not None:
            return f"K={self.codebook}"
        return "float" if self.weight_bits is None else f"{self.weight_bits} bits"

    def override(self, layer: str) -> LayerOverride:
        """The setting as a layer override of a recipe."""
        pattern = re.sub(r"([*?\[])", r"[\1]", layer)
        if self.codebook is not None:
            return LayerOverride(pattern, codebook=self.codebook)
        if self.weight_bits is not None:
            return LayerOverride(pattern, weight_bits=self.weight_bits, codebook=OFF)
        return LayerOverride(pattern, keep_float=True)


FLOAT = Setting()


@dataclass(frozen=True)
class Effect:
    """The effect of one setting of one layer, with all other layers unchanged.

    Attributes:
        size: bytes that the weights take in the file, with their scales.
        error: a measure that adds up over layers, see `SweepTable.measure`.
        drop: mean of p_T(c_T) - p_T(c_S), percentage points; None without decisions.
        drop_error: one standard error of the drop.
    """

    size: int
    error: float
    drop: float | None = None
    drop_error: float | None = None


@dataclass(frozen=True)
class Row:
    """One weight and the effects of its settings.

    Attributes:
        layers: names of the nodes that read the weight; the first one names the row.
        parameters: number of weights.
        effects: by setting.
    """

    layers: tuple[str, ...]
    parameters: int
    effects: Mapping[Setting, Effect]

    @property
    def name(self) -> str:
        """The first layer's name."""
        return self.layers[0]


@dataclass(frozen=True)
class SweepTable:
    """The rows of a sweep, in graph order.

    Attributes:
        rows: one per weight.
        measure: "kl", the mean KL(teacher || student) in nats, or "error", the relative squared
            error of the compared outputs where they are no decisions.
        samples: number of samples that each setting was tried on.
        synthetic: whether the samples are synthetic.
        notes: sentences for the user.
    """

    rows: tuple[Row, ...]
    measure: Measure
    samples: int
    synthetic: bool = False
    notes: tuple[str, ...] = ()

    @property
    def settings(self) -> list[Setting]:
        """All settings but float: codebooks by size, then integer weights by bit width."""
        found = {setting for row in self.rows for setting in row.effects if setting != FLOAT}
        return sorted(found, key=lambda s: (s.codebook is None, s.codebook or s.weight_bits))

    @property
    def kinds(self) -> dict[str, list[Setting]]:
        """The settings of each kind from the coarsest to the finest, without empty kinds."""
        found = {
            "codebooks": [s for s in self.settings if s.codebook is not None],
            "codes": [s for s in self.settings if s.codebook is None],
        }
        return {name: settings for name, settings in found.items() if settings}

    def to_fields(self) -> dict[str, Any]:
        """The table as JSON fields."""
        return {
            "measure": self.measure,
            "samples": self.samples,
            "made": self.synthetic,
            "notes": list(self.notes),
            "layers": [
                {
                    "layers": list(row.layers),
                    "parameters": row.parameters,
                    "settings": [
                        {"setting": setting.label, "codebook": setting.codebook,
                         "weight_bits": setting.weight_bits, "bytes": effect.size,
                         "error": effect.error, "drop": effect.drop,
                         "drop_error": effect.drop_error}
                        for setting, effect in row.effects.items()
                    ],
                }
                for row in self.rows
            ],
        }  # fmt: skip

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> SweepTable:
        """The inverse of `to_fields`."""
        rows = tuple(_row(row) for row in fields["layers"])
        synthetic, notes = fields["made"], tuple(fields["notes"])
        return cls(rows, fields["measure"], fields["samples"], synthetic, notes)


def _row(fields: Mapping[str, Any]) -> Row:
    effects = {
        Setting(each["codebook"], each["weight_bits"]): Effect(
            each["bytes"], each["error"], each["drop"], each["drop_error"]
        )
        for each in fields["settings"]
    }
    return Row(tuple(fields["layers"]), fields["parameters"], effects)


CODEBOOK_GAIN, CODE_GAIN, ROUNDING_GAIN = 3.0, 1.4, 7.0
"""Error before over after training: measured 2.4 to 3.4 with codebooks, with integers 1.0 to 1.7 by
thresholds, 7 by rounding at 4 bits and 15 at 3."""


def choices(table: SweepTable, plan: Plan, recipe: Recipe, *, floats: bool) -> list[Row]:
    """The rows that an allocation may set, each with all its candidate settings.

    Settings between two measured ones get an interpolated error: codebook sizes of three times a
    power of two, and 7 bits. Errors are those expected after training, which lowers them by a
    factor that depends on the kind of setting and on what is trained.

    Args:
        table: of the sweep.
        plan: of the layers that were tried.
        recipe: the options.
        floats: whether a layer may stay float.
    """
    rows = []
    for row in table.rows:
        specs = [plan.layers[name] for name in row.layers]
        if not is_free(specs, plan, recipe):
            continue
        integers = any(_stated(spec, recipe).get("codebook") == OFF for spec in specs)
        effects = {
            setting: replace(effect, error=effect.error / _gain(setting, recipe))
            for setting, effect in {**row.effects, **_between(row, specs)}.items()
            if (floats or setting != FLOAT) and not (integers and setting.codebook is not None)
        }
        rows.append(replace(row, effects=effects))
    return rows


def _gain(setting: Setting, recipe: Recipe) -> float:
    """The factor by which the recipe's training is expected to lower a setting's error."""
    if setting.codebook is not None:
        return CODEBOOK_GAIN if {"auto", "codebooks"} & {*recipe.learn} else 1.0
    if {"auto", "rounding"} & {*recipe.learn}:
        return ROUNDING_GAIN
    return CODE_GAIN if "thresholds" in recipe.learn else 1.0


def is_free(specs: Sequence[LayerSpec], plan: Plan, recipe: Recipe) -> bool:
    """Whether a search may set the layers of one weight.

    It may not where the recipe states their codebook size or bit width, in `layers` or, for the
    first and last layers, by `first_last_bits`.

    Args:
        specs: the layers of the weight.
        plan: of all layers.
        recipe: the options.
    """
    for spec in specs:
        stated = _stated(spec, recipe)
        if "weight_bits" in stated or stated.get("codebook", OFF) != OFF:
            return False
        if recipe.first_last_bits is not None and spec.name in plan.first_last:
            return False
    return True


def _stated(spec: LayerSpec, recipe: Recipe) -> dict[str, object]:
    return recipe.stated_for(spec.name, spec.op_type)


def _between(row: Row, specs: Sequence[LayerSpec]) -> dict[Setting, Effect]:
    """Interpolated settings: 3, 6, 12, ... centroids and 7 bits.

    The logarithm of the error is nearly linear in log K, and in the bits.
    """
    integer = any(spec.compute == "integer" for spec in specs)
    found = {}
    for low, middle, high, share in _triples(row):
        below, above = row.effects[low], row.effects[high]
        if min(below.error, above.error) <= 0:
            continue
        logs = (1 - share) * math.log(below.error) + share * math.log(above.error)
        form = {"codebook": middle.codebook, "num_bits": middle.weight_bits or specs[0].num_bits}
        size = weight_bytes(replace(specs[0], **form), integer=integer)  # type: ignore[arg-type]
        found[middle] = Effect(size, math.exp(logs))
    return found


def _triples(row: Row) -> list[tuple[Setting, Setting, Setting, float]]:
    """Two measured settings, the one between them, and its relative position."""
    counts = [s.codebook for s in row.effects if s.codebook is not None]
    widths = [s.weight_bits for s in row.effects if s.weight_bits is not None]
    books = [
        (Setting(k), Setting(k * 3 // 2), Setting(2 * k), math.log2(1.5))
        for k in counts
        if 2 * k in counts
    ]
    integers = [
        (Setting(None, n), Setting(None, n + 1), Setting(None, n + 2), 0.5)
        for n in widths
        if n + 2 in widths and n + 1 not in widths
    ]
    return books + integers
