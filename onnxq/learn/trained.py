"""All that is trained in a run, as parts with one interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Protocol

import numpy as np

from onnxq.learn.codebook_tables import CodebookTables
from onnxq.learn.free_values import FreeValues
from onnxq.learn.threshold_scales import ThresholdScales
from onnxq.numerics.bias_correction import shift_weight_gradient
from onnxq.plan.spec import Plan
from onnxq.rewrite.quantizers import Quantizers, bias_name, needs_bias

Extremes = Mapping[str, tuple[float, float]]


class Part(Protocol):
    """Some trained values, what they mean, and their chain rule.

    Attributes:
        values: float32 arrays by key, each in a unit in which one learning rate serves all.
    """

    values: dict[str, np.ndarray]

    def project(self) -> None:
        """Put every value back into its bounds, in place."""

    def quantizers(self, base: Quantizers) -> Quantizers:
        """The numbers with those that the values stand for in the place of their own."""

    def parameter_names(self) -> list[str]:
        """The student's inputs whose gradients are wanted."""

    def gradients(self, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """dL/d value by key, from dL/d input by the name of the student's input."""


def make_parts(learns: Set[str], plan: Plan, start: Quantizers, extremes: Extremes) -> list[Part]:
    """The parts that the options of `learn` name; those without values are left out.

    Args:
        learns: the options.
        plan: the plan.
        start: the numbers to start from.
        extremes: (minimum, maximum) of each tensor by name, from the calibration.
    """
    parts: list[Part] = []
    if learns & {"auto", "thresholds"}:
        parts.append(ThresholdScales(plan, start, extremes))
    if learns & {"auto", "codebooks"}:
        parts.append(CodebookTables(plan, start))
    floats = list(plan.float_layers.values()) if "float-layers" in learns else []
    quantized = list(plan.layers.values()) if "biases" in learns else []
    biases = [spec for spec in (*quantized, *floats) if needs_bias(spec)]
    parts.append(FreeValues(start, floats, biases))
    return [part for part in parts if part.values]


class Trained:
    """The values of all parts, and the numbers that they stand for.

    Args:
        parts: the parts; their keys differ.
        plan: the plan.
        start: the numbers to start from.

    Attributes:
        values: the arrays of the parts, by key.
        names: the student's inputs whose gradients are wanted.
    """

    def __init__(self, parts: Sequence[Part], plan: Plan, start: Quantizers) -> None:
        self._parts, self._start = parts, start
        self.values = {key: value for part in parts for key, value in part.values.items()}
        names = dict.fromkeys(name for part in parts for name in part.parameter_names())
        self._corrected = [
            s for s in plan.layers.values() if s.name in start.means and s.weight in names
        ]
        self.names = list(names | dict.fromkeys(bias_name(spec) for spec in self._corrected))
        self.project()

    def project(self) -> None:
        """Put every value back into its bounds, in place."""
        for part in self._parts:
            part.project()

    def quantizers(self) -> Quantizers:
        """The numbers that the values stand for."""
        found = self._start
        for part in self._parts:
            found = part.quantizers(found)
        return found

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        """Set every value, in place."""
        for key, value in self.values.items():
            value[...] = values[key]

    def gradients(self, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """dL/d value by key, with what flows through biases corrected for a weight's error."""
        total = dict(found)
        for spec in self._corrected:
            through_bias = shift_weight_gradient(
                found[bias_name(spec)],
                self._start.means[spec.name],
                found[spec.weight].shape,
                spec.op_type,
                spec.channel_axis,
            )
            total[spec.weight] = total[spec.weight] + through_bias
        return {k: g for part in self._parts for k, g in part.gradients(total).items()}
