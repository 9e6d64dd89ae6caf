"""The trained values of a run, as parts with one interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType
from typing import Protocol

import numpy as np

from onnxq.learn.codebooks import CodebookTables
from onnxq.learn.step_sizes import StepSizes
from onnxq.learn.thresholds import ThresholdScales
from onnxq.learn.weights import FreeValues, LatentWeights
from onnxq.numerics.bias_correction import shift_weight_gradient
from onnxq.numerics.qparams import FloatArray
from onnxq.numerics.quantizers import Range
from onnxq.plan.spec import LayerSpec, Plan
from onnxq.student.qparams import QParams, bias_name, needs_bias

NONE_KNOWN: Mapping[str, int] = MappingProxyType({})


class Part(Protocol):
    """Some trained values, the parameters that they stand for, and their chain rule.

    Attributes:
        group: the option of `learn` that they belong to; it has its own learning rate.
        values: float32 arrays by key, scaled so that one learning rate serves all.
        units: what a value of 1 means for the real parameter, by key.
    """

    group: str
    values: dict[str, np.ndarray]
    units: dict[str, FloatArray | np.float32]

    def project(self) -> None:
        """Clip every value to its bounds, in place."""

    def qparams(self, base: QParams) -> QParams:
        """The quantization parameters with the trained ones replaced."""

    def parameter_names(self) -> list[str]:
        """The student's inputs whose gradients are needed."""

    def gradients(self, found: Mapping[str, np.ndarray], now: QParams) -> dict[str, np.ndarray]:
        """dL/d value by key, from dL/d input by the student's input name at these parameters."""


def make_parts(
    learns: Set[str],
    plan: Plan,
    start: QParams,
    full_ranges: Mapping[str, Range],
    elements: Mapping[str, int] = NONE_KNOWN,
) -> list[Part]:
    """The parts for the options of `learn`; parts without values are left out.

    Args:
        learns: the options.
        plan: the plan.
        start: the quantization parameters to start from.
        full_ranges: the range of all values that calibration saw, by tensor name.
        elements: elements of each tensor in one sample, by name, where known.
    """
    layers, floats = plan.multiplied(), list(plan.float_layers.values())
    parts: list[Part] = []
    if "thresholds" in learns:
        parts.append(ThresholdScales(plan, start, full_ranges))
    if "steps" in learns:
        parts.append(StepSizes(plan, start, elements))
    if "weights" in learns:
        # After the steps, which weights on their grid go along with.
        parts.append(LatentWeights(layers, start))
    if "codebooks" in learns:
        parts.append(CodebookTables(plan, start))
    if "float-layers" in learns:
        parts.append(FreeValues(start, floats, _biased(floats)))
    if learns & {"biases", "weights"}:
        parts.append(FreeValues(start, [], _biased(layers), "biases"))
    return [part for part in parts if part.values]


def _biased(layers: Sequence[LayerSpec]) -> list[LayerSpec]:
    return [spec for spec in layers if needs_bias(spec)]


class Trained:
    """The values of all parts, and the quantization parameters that they stand for.

    Args:
        parts: the parts; their keys differ.
        plan: the plan.
        start: the quantization parameters to start from.

    Attributes:
        values: the arrays of the parts, by key.
        groups: the option of `learn` that each belongs to, by key.
        names: the student's inputs whose gradients are needed.
    """

    def __init__(self, parts: Sequence[Part], plan: Plan, start: QParams) -> None:
        self._parts, self._start = parts, start
        self.values = {key: value for part in parts for key, value in part.values.items()}
        self.groups = {key: part.group for part in parts for key in part.values}
        names = dict.fromkeys(name for part in parts for name in part.parameter_names())
        self._corrected = [
            s for s in plan.layers.values() if s.name in start.means and s.weight in names
        ]
        self.names = list(names | dict.fromkeys(bias_name(spec) for spec in self._corrected))
        self.project()

    def project(self) -> None:
        """Clip every value to its bounds, in place."""
        for part in self._parts:
            part.project()

    def qparams(self) -> QParams:
        """The quantization parameters that the values stand for."""
        found = self._start
        for part in self._parts:
            found = part.qparams(found)
        return found

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        """Set every value, in place."""
        for key, value in self.values.items():
            value[...] = values[key]

    def real_rates(self) -> dict[str, FloatArray | float]:
        """The rate by key with which gradient descent moves the real parameter at rate 1.

        With real = unit * value, that is 1 / unit^2, times LSQ's factor for step sizes.
        """
        rates: dict[str, FloatArray | float] = {}
        for part in self._parts:
            damping = part.damping if isinstance(part, StepSizes) else {}
            for key in part.values:
                rate = damping.get(key, 1.0) / np.square(part.units[key], dtype=np.float64)
                rates[key] = np.asarray(rate, np.float32)
        return rates

    def gradients(
        self, found: Mapping[str, np.ndarray], now: QParams | None = None
    ) -> dict[str, np.ndarray]:
        """dL/d value by key; gradients of corrected biases flow back to their weights.

        Args:
            found: dL/d input by the student's input name.
            now: the quantization parameters at which they were computed; None means the current
                ones.
        """
        total = dict(found)
        now = now or self.qparams()
        for spec in self._corrected:
            factor = self._start.factors.get(spec.name, np.float32(1))
            through_bias = shift_weight_gradient(
                found[bias_name(spec)] * factor,
                self._start.means[spec.name],
                found[spec.weight].shape,
                spec.op_type,
                spec.channel_axis,
            )
            total[spec.weight] = total[spec.weight] + through_bias
        return {k: g for part in self._parts for k, g in part.gradients(total, now).items()}
