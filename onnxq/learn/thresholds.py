"""FAT's trained values: one scale alpha per threshold, and what they mean in real units.

Goncharenko et al., "FAT: Fast Adjustable Threshold for Uniform Neural Network Quantization",
with the errata for signed values and for integer zero points; below 8 bits 0.05 takes the place
of 0.5, since where codes are few far more is clipped:

| quantizer | trained | meaning | bounds |
|---|---|---|---|
| weights, one T or one per channel | alpha | T = alpha * max|w| | [0.5, 1] |
| unsigned tensor | alpha_R | width = alpha_R * R | [0.5, 1] |
| symmetric signed tensor | alpha | T = alpha * T_max | [0.5, 1] |
| asymmetric signed tensor | alpha_T | left = T_l + alpha_T * R | [-0.2, 0.4], left <= 0 |
| | alpha_R | width = alpha_R * R | [0.5, 1], left + width >= 0 |

with R = T_r - T_l the range of the calibration. All are of the same order, so one learning
rate serves all layers. Values are projected back after every step: a clip inside the graph
would have no gradient outside its bounds, and a value that left them would stay there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxq.numerics.clip_mse import alpha_min
from onnxq.numerics.qparams import (
    FloatArray,
    weight_threshold_gradient,
    weight_threshold_max,
)
from onnxq.plan.spec import Plan, TensorSpec
from onnxq.student.qparams import (
    SMALLEST_WIDTH,
    QParams,
    Range,
    limit_names,
    on_grid,
    quantized_inputs,
    range_of,
)

ALPHA_MAX = 1.0
SHIFT_MIN, SHIFT_MAX = -0.2, 0.4

WIDTH, SHIFT, WEIGHT = "width:", "shift:", "weight:"


class ThresholdScales:
    """The trained values of all thresholds, and their chain rule.

    Args:
        plan: the plan.
        start: the numbers to start from; only ranges and thresholds are learned.
        extremes: (minimum, maximum) of each tensor by name, from the calibration.

    Attributes:
        values: alpha by key, float32; a scalar, or one per channel for weights.
        units: the width or threshold that alpha = 1 stands for, by key.
    """

    group = "thresholds"

    def __init__(
        self,
        plan: Plan,
        start: QParams,
        extremes: Mapping[str, tuple[float, float]],
    ) -> None:
        self._tensors = plan.tensors
        self._layers = {
            s.weight: s for s in plan.multiplied() if s.codebook is None and not on_grid(s, start)
        }
        self._bounds = {n: _full_range(s, *extremes[n]) for n, s in self._tensors.items()}
        self._largest = {
            w: weight_threshold_max(start.weights[w], s.axis) for w, s in self._layers.items()
        }
        self.values: dict[str, np.ndarray] = {}
        for name, spec in self._tensors.items():
            low, full = self._bounds[name]
            left, width = start.ranges[name]
            self.values[WIDTH + name] = np.asarray(width / full, np.float32)
            if spec.kind == "asymmetric":
                self.values[SHIFT + name] = np.asarray((left - low) / full, np.float32)
        for weight, largest in self._largest.items():
            self.values[WEIGHT + weight] = np.asarray(start.thresholds[weight] / largest)
        self.units: dict[str, FloatArray | np.float32] = {
            **{WIDTH + n: np.float32(full) for n, (_, full) in self._bounds.items()},
            **{SHIFT + n: np.float32(full) for n, (_, full) in self._bounds.items()},
            **{WEIGHT + w: largest for w, largest in self._largest.items()},
        }
        self.project()

    def project(self) -> None:
        """Put every value back into its bounds, in place."""
        for name, spec in self._tensors.items():
            width = self.values[WIDTH + name]
            np.clip(width, alpha_min(spec.num_bits), ALPHA_MAX, out=width)
            if spec.kind == "asymmetric":
                self._project_shift(name)
        for weight, layer in self._layers.items():
            alpha = self.values[WEIGHT + weight]
            np.clip(alpha, alpha_min(layer.num_bits), ALPHA_MAX, out=alpha)

    def _project_shift(self, name: str) -> None:
        low, full = self._bounds[name]
        shift, width = self.values[SHIFT + name], self.values[WIDTH + name]
        np.clip(shift, SHIFT_MIN, min(SHIFT_MAX, -low / full), out=shift)
        np.maximum(shift, -low / full - width, out=shift)

    def qparams(self, base: QParams) -> QParams:
        """The numbers with the ranges and thresholds that the values stand for."""
        ranges = {name: self._range(spec) for name, spec in self._tensors.items()}
        return base.with_ranges(ranges).with_thresholds(self._thresholds())

    def _thresholds(self) -> dict[str, FloatArray]:
        return {
            weight: np.asarray(self.values[WEIGHT + weight] * largest, np.float32)
            for weight, largest in self._largest.items()
        }

    def _range(self, spec: TensorSpec) -> Range:
        low, full = self._bounds[spec.name]
        width = float(self.values[WIDTH + spec.name]) * full
        shift = self.values.get(SHIFT + spec.name, 0.0)
        return range_of(spec, low + float(shift) * full, width)

    def parameter_names(self) -> list[str]:
        """The student's inputs whose gradients are wanted."""
        return quantized_inputs(self._tensors.values(), self._layers.values())

    def gradients(self, found: Mapping[str, np.ndarray], now: QParams) -> dict[str, np.ndarray]:
        """dL/d alpha by key.

        Args:
            found: dL/d limit and dL/d weight by the student's input name.
            now: the numbers that they were taken at.
        """
        result: dict[str, np.ndarray] = {}
        for name, spec in self._tensors.items():
            full = self._bounds[name][1]
            names = limit_names(spec)
            # A symmetric threshold is half the width.
            factor = full / 2 if spec.kind == "symmetric" else full
            result[WIDTH + name] = np.asarray(found[names[-1]] * factor, np.float32)
            if spec.kind == "asymmetric":
                result[SHIFT + name] = np.asarray(found[names[0]] * full, np.float32)
        for weight, layer in self._layers.items():
            gradient = weight_threshold_gradient(
                found[weight],
                now.weights[weight],
                now.thresholds[weight],
                layer.num_bits,
                layer.axis,
            )
            result[WEIGHT + weight] = gradient * self._largest[weight]
        return result


def _full_range(spec: TensorSpec, minimum: float, maximum: float) -> tuple[float, float]:
    """(T_l, R): the left limit and the width of everything that the calibration saw."""
    low, high = min(minimum, 0.0), max(maximum, 0.0)
    if spec.kind == "positive":
        low = 0.0
    elif spec.kind == "symmetric":
        high = max(-low, high)
        low = -high
    return low, max(high - low, SMALLEST_WIDTH)
