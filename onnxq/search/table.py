"""The table of a sweep: the effect of each setting of each layer alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from onnxq.options.recipe import LayerOverride
from onnxq.options.table import OFF

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
        made: whether the samples are synthetic.
        notes: sentences for the user.
    """

    rows: tuple[Row, ...]
    measure: Measure
    samples: int
    made: bool = False
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
            "made": self.made,
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
        made, notes = fields["made"], tuple(fields["notes"])
        return cls(rows, fields["measure"], fields["samples"], made, notes)


def _row(fields: Mapping[str, Any]) -> Row:
    effects = {
        Setting(each["codebook"], each["weight_bits"]): Effect(
            each["bytes"], each["error"], each["drop"], each["drop_error"]
        )
        for each in fields["settings"]
    }
    return Row(tuple(fields["layers"]), fields["parameters"], effects)
