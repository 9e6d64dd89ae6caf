"""Trained ranges and thresholds: each is a share alpha of the calibrated range.

Goncharenko et al., "FAT: Fast Adjustable Threshold for Uniform Neural Network Quantization", 2019,
corrected for signed values and for integer zero points. Below 8 bits the bound 0.5 is 0.05, since
with few levels the best threshold clips far more.

| quantizer | trained | meaning | kept in |
|---|---|---|---|
| weight, per tensor or channel | alpha | T = alpha max|w| | [0.5, 1] |
| positive | alpha_R | width = alpha_R R | [0.5, 1] |
| symmetric | alpha_R | T = alpha_R R / 2 | [0.5, 1] |
| asymmetric | alpha_T | lowest = T_l + alpha_T R | [-0.2, 0.4], lowest <= 0 |
| | alpha_R | width = alpha_R R | [0.5, 1], lowest + width >= 0 |

T_l is the lowest value that calibration saw and R the width of all values. All alpha are of the
same order, so one learning rate serves all layers. Values are projected back after every step: a
clip inside the graph would have no gradient outside, and a value beyond it would stay there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxq.numerics.clip_mse import smallest_share
from onnxq.numerics.quantizers import (
    FloatArray,
    Range,
    weight_threshold_gradient,
    weight_threshold_max,
)
from onnxq.plan.spec import Plan, TensorSpec
from onnxq.student.qparams import QParams, is_on_grid, quantized_inputs, range_inputs

SHIFT_MIN, SHIFT_MAX = -0.2, 0.4

WIDTH, SHIFT, THRESHOLD = "width:", "shift:", "weight:"


class ThresholdScales:
    """The trained values of all thresholds, and their chain rule.

    Args:
        plan: the plan.
        start: the quantization parameters to start from; only ranges and thresholds are trained.
        full: the range of all values that calibration saw, by tensor name.

    Attributes:
        values: alpha by key, float32, () or, for weights, (channels,).
        units: the width or threshold for alpha = 1, by key.
    """

    group = "thresholds"

    def __init__(self, plan: Plan, start: QParams, full: Mapping[str, Range]) -> None:
        self._tensors = plan.tensors
        self._layers = {
            s.weight: s
            for s in plan.product_layers()
            if s.codebook is None and not is_on_grid(s, start)
        }
        self._full = full
        self._largest = {
            w: weight_threshold_max(start.weights[w], s.axis) for w, s in self._layers.items()
        }
        self.values: dict[str, np.ndarray] = {}
        for name, spec in self._tensors.items():
            seen, now = full[name], start.ranges[name]
            self.values[WIDTH + name] = np.asarray(now.width / seen.width, np.float32)
            if spec.quantizer.has_lowest:
                shift = (now.lowest - seen.lowest) / seen.width
                self.values[SHIFT + name] = np.asarray(shift, np.float32)
        for weight, largest in self._largest.items():
            self.values[THRESHOLD + weight] = np.asarray(start.thresholds[weight] / largest)
        self.units: dict[str, FloatArray | np.float32] = {
            **{WIDTH + name: np.float32(full[name].width) for name in self._tensors},
            **{SHIFT + name: np.float32(full[name].width) for name in self._tensors},
            **{THRESHOLD + w: largest for w, largest in self._largest.items()},
        }
        self.project()

    def project(self) -> None:
        """Clip every value to its interval in the table at the head of this module, in place."""
        for name, spec in self._tensors.items():
            width = self.values[WIDTH + name]
            np.clip(width, smallest_share(spec.num_bits), 1.0, out=width)
            if spec.quantizer.has_lowest:
                self._project_shift(name)
        for weight, layer in self._layers.items():
            alpha = self.values[THRESHOLD + weight]
            np.clip(alpha, smallest_share(layer.num_bits), 1.0, out=alpha)

    def _project_shift(self, name: str) -> None:
        seen = self._full[name]
        shift, width = self.values[SHIFT + name], self.values[WIDTH + name]
        np.clip(shift, SHIFT_MIN, min(SHIFT_MAX, -seen.lowest / seen.width), out=shift)
        np.maximum(shift, -seen.lowest / seen.width - width, out=shift)

    def qparams(self, base: QParams) -> QParams:
        """A copy with the trained ranges and thresholds."""
        ranges = {name: self._range(spec) for name, spec in self._tensors.items()}
        return base.with_ranges(ranges).with_thresholds(self._thresholds())

    def _thresholds(self) -> dict[str, FloatArray]:
        return {
            weight: np.asarray(self.values[THRESHOLD + weight] * largest, np.float32)
            for weight, largest in self._largest.items()
        }

    def _range(self, spec: TensorSpec) -> Range:
        seen = self._full[spec.name]
        width = float(self.values[WIDTH + spec.name]) * seen.width
        shift = self.values.get(SHIFT + spec.name, 0.0)
        return spec.quantizer.range(seen.lowest + float(shift) * seen.width, width)

    def parameter_names(self) -> list[str]:
        """The student's inputs whose gradients are needed."""
        return quantized_inputs(self._tensors.values(), self._layers.values())

    def gradients(self, found: Mapping[str, np.ndarray], now: QParams) -> dict[str, np.ndarray]:
        """dL/d alpha by key.

        Args:
            found: dL/d range parameter and dL/d weight by the student's input name.
            now: the quantization parameters at which they were computed.
        """
        result: dict[str, np.ndarray] = {}
        for name, spec in self._tensors.items():
            width, names = self._full[name].width, range_inputs(spec)
            slope = found[names[-1]] * (width * spec.quantizer.share)
            result[WIDTH + name] = np.asarray(slope, np.float32)
            if spec.quantizer.has_lowest:
                result[SHIFT + name] = np.asarray(found[names[0]] * width, np.float32)
        for weight, layer in self._layers.items():
            gradient = weight_threshold_gradient(
                found[weight],
                now.weights[weight],
                now.thresholds[weight],
                layer.num_bits,
                layer.axis,
            )
            result[THRESHOLD + weight] = gradient * self._largest[weight]
        return result
