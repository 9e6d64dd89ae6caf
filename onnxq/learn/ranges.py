"""Trained ranges of activations and scales of weights: FAT's thresholds and LSQ's step sizes.

**Thresholds** (FAT): each range and threshold is a share alpha of the calibrated one.

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

**Step sizes** (LSQ): the range of every activation and the scale of every weight.

Esser et al., "Learned Step Size Quantization", 2020, and Li et al., DFQF, 2020, equations 10 and
11. The logarithm of the step is trained, so that no step turns negative:

    step = step_0 exp(v),   dL/dv = step dL/dstep

| quantizer | trained | meaning |
|---|---|---|
| weight, per tensor or channel | v | T = T_0 exp(v), step = T / (2^(n-1) - 1) |
| positive or symmetric | v | width = width_0 exp(v) |
| asymmetric | v | likewise |
| | u | lowest = lowest_0 + u width_0, lowest <= 0 <= lowest + width |

Weights that lie on their grid, as GPTQ leaves them, keep their integers and scale with the step:

    w = w_0 exp(v),   dL/dv = sum of W~ dL/dW~

LSQ divides the gradient of a step by sqrt(N Q_max), where N counts the weights that share it, or
the elements of one sample. A step then moves as fast as the weights, relative to its size. Plain
gradient descent needs this factor (`damping`); Adam would cancel it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxq.numerics.clip_mse import smallest_share
from onnxq.numerics.quantizers import (
    WEIGHT,
    FloatArray,
    Range,
    fake_quant_weight,
    per_channel,
    weight_scale,
    weight_threshold_gradient,
    weight_threshold_max,
)
from onnxq.plan.spec import LayerSpec, Plan, TensorSpec
from onnxq.student.qparams import QParams, is_on_grid, quantized_inputs, range_inputs

SHIFT_MIN, SHIFT_MAX = -0.2, 0.4


class _Ranges:
    """The tensors and layers whose ranges are trained, by name."""

    _tensors: Mapping[str, TensorSpec]
    _layers: Mapping[str, LayerSpec]

    def parameter_names(self) -> list[str]:
        """The student's inputs whose gradients are needed."""
        return quantized_inputs(self._tensors.values(), self._layers.values())

    def _weight_slope(
        self, weight: str, found: Mapping[str, np.ndarray], now: QParams
    ) -> FloatArray:
        """dL/d threshold of a weight, from dL/d weight."""
        layer = self._layers[weight]
        return weight_threshold_gradient(
            found[weight], now.weights[weight], now.thresholds[weight], layer.num_bits, layer.axis
        )


WIDTH, SHIFT, THRESHOLD = "width:", "shift:", "weight:"


class ThresholdScales(_Ranges):
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
        for weight, largest in self._largest.items():
            result[THRESHOLD + weight] = self._weight_slope(weight, found, now) * largest
        return result


STEP, LOWEST, WEIGHT_STEP = "step:", "lowest:", "weight-step:"

FURTHEST = float(np.log(16))
"""Of v: integer kernels hold no ratio of steps above 256, and float32 not every exp(v)."""


class StepSizes(_Ranges):
    """The trained step sizes of a plan, and their chain rule.

    Args:
        plan: the plan.
        start: the quantization parameters to start from.
        elements: elements of each tensor in one sample, by name; 1 where unknown.

    Attributes:
        values: v and u by key, float32, zero at the start.
        units: step_0 by key, which is the change of a step per change of its value at the start.
        damping: LSQ's factor by key.
    """

    group = "steps"

    def __init__(self, plan: Plan, start: QParams, elements: Mapping[str, int]) -> None:
        self._tensors = plan.tensors
        self._layers = {s.weight: s for s in plan.product_layers() if s.codebook is None}
        self._ranges = start.ranges
        self._thresholds = {w: start.thresholds[w] for w in self._layers}
        self._on_grid = {
            w: start.weights[w] for w, layer in self._layers.items() if is_on_grid(layer, start)
        }
        self.damping: dict[str, float] = {}
        self.values: dict[str, np.ndarray] = {}
        self.units: dict[str, FloatArray | np.float32] = {}
        for name, spec in self._tensors.items():
            width = np.float32(start.ranges[name].width)
            largest, shared = spec.quantizer.largest(spec.num_bits), elements.get(name, 1)
            self._add(STEP + name, width, largest, shared)
            if spec.quantizer.has_lowest:
                self._add(LOWEST + name, width, largest, shared)
        for weight, layer in self._layers.items():
            shared = layer.parameters // max(self._thresholds[weight].size, 1)
            largest = WEIGHT.largest(layer.num_bits)
            self._add(WEIGHT_STEP + weight, self._thresholds[weight], largest, shared)

    def _add(self, key: str, full: FloatArray | np.float32, largest: int, shared: int) -> None:
        self.values[key] = np.zeros(np.shape(full), np.float32)
        self.units[key] = np.asarray(full / np.float32(largest), np.float32)
        self.damping[key] = float(1 / np.sqrt(max(shared, 1) * largest))

    def project(self) -> None:
        """Clip steps to their bounds and keep zero inside every asymmetric range, in place."""
        for key, value in self.values.items():
            if not key.startswith(LOWEST):
                np.clip(value, -FURTHEST, FURTHEST, out=value)
        for name, spec in self._tensors.items():
            if spec.quantizer.has_lowest:
                lowest, full = self._ranges[name]
                width = full * float(np.exp(self.values[STEP + name]))
                shift = self.values[LOWEST + name]
                np.clip(shift, (-width - lowest) / full, -lowest / full, out=shift)

    def qparams(self, base: QParams) -> QParams:
        """The quantization parameters with the trained ranges and thresholds."""
        ranges = {name: self._range(spec) for name, spec in self._tensors.items()}
        thresholds = {
            weight: np.asarray(start * np.exp(self.values[WEIGHT_STEP + weight]), np.float32)
            for weight, start in self._thresholds.items()
        }
        weights = {
            weight: scaled(start, np.exp(self.values[WEIGHT_STEP + weight]), self._layers[weight])
            for weight, start in self._on_grid.items()
        }
        return base.with_ranges(ranges).with_thresholds(thresholds).with_weights(weights)

    def _range(self, spec: TensorSpec) -> Range:
        lowest, full = self._ranges[spec.name]
        width = full * float(np.exp(self.values[STEP + spec.name]))
        shift = self.values.get(LOWEST + spec.name, 0.0)
        return spec.quantizer.range(lowest + full * float(shift), width)

    def gradients(self, found: Mapping[str, np.ndarray], now: QParams) -> dict[str, np.ndarray]:
        """dL/dv and dL/du by key; LSQ's factor is left to the optimizer.

        Args:
            found: dL/d range parameter and dL/d weight by the student's input name.
            now: the quantization parameters at which they were computed.
        """
        result: dict[str, np.ndarray] = {}
        for name, spec in self._tensors.items():
            names = range_inputs(spec)
            result[STEP + name] = found[names[-1]] * (now.ranges[name].width * spec.quantizer.share)
            if spec.quantizer.has_lowest:
                result[LOWEST + name] = found[names[0]] * self._ranges[name].width
        for weight, layer in self._layers.items():
            if weight in self._on_grid:
                result[WEIGHT_STEP + weight] = _slope_on_grid(found[weight], layer, now)
                continue
            slope = self._weight_slope(weight, found, now)
            result[WEIGHT_STEP + weight] = slope * now.thresholds[weight]
        return {key: np.asarray(slope, np.float32) for key, slope in result.items()}


def scaled(weight: FloatArray, factor: FloatArray, spec: LayerSpec) -> FloatArray:
    """A weight times one factor, or one per channel."""
    return np.asarray(weight * per_channel(factor, weight.ndim, spec.axis), np.float32)


def _slope_on_grid(slope: FloatArray, spec: LayerSpec, now: QParams) -> FloatArray:
    """dL/dv of weights that keep their integers: sum of W~ dL/dW~, per channel or over all."""
    weight = now.weights[spec.weight]
    scale = weight_scale(now.thresholds[spec.weight], spec.num_bits)
    fake = fake_quant_weight(weight, scale, spec.num_bits, spec.axis)
    others = tuple(i for i in range(weight.ndim) if i != spec.axis)
    return np.asarray((slope * fake).sum(axis=others, dtype=np.float64), np.float32)
