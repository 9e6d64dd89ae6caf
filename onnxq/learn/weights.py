"""Trained weights and biases.

Float weights behind integer ones by the straight-through estimator (Bengio et al., 2013), and
weights of float layers and biases directly (Thonglek et al., 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxq.numerics.quantizers import FloatArray, is_unclipped, per_channel, weight_scale
from onnxq.plan.spec import LayerSpec
from onnxq.student.qparams import QParams, bias_name, is_on_grid

VALUE, BIAS = "value:", "bias:"


class FreeValues:
    """Trained weights of float layers, and trained biases.

    Args:
        start: the quantization parameters to start from.
        weights: layers whose weights are trained.
        biases: layers whose biases are trained.
        group: the option of `learn` that they belong to.

    Attributes:
        values: d by key, float32, in the shape of the weight or bias.
        units: the unit by key.
    """

    def __init__(
        self,
        start: QParams,
        weights: Sequence[LayerSpec],
        biases: Sequence[LayerSpec],
        group: str = "float-layers",
    ) -> None:
        self.group = group
        self._weights = {spec.weight: start.weights[spec.weight] for spec in weights}
        self._biases = {spec.name: start.biases[spec.name] for spec in biases}
        self._inputs = {VALUE + name: name for name in self._weights}
        self._inputs |= {BIAS + spec.name: bias_name(spec) for spec in biases}
        self.units: dict[str, FloatArray | np.float32] = {
            VALUE + n: root_mean_square(w) for n, w in self._weights.items()
        }
        self.units |= {BIAS + n: root_mean_square(b) for n, b in self._biases.items()}
        arrays = {VALUE + n: w for n, w in self._weights.items()}
        arrays |= {BIAS + n: b for n, b in self._biases.items()}
        self.values = {key: np.zeros(array.shape, np.float32) for key, array in arrays.items()}

    def project(self) -> None:
        """Does nothing: the values have no bounds."""

    def qparams(self, base: QParams) -> QParams:
        """The quantization parameters with the trained weights and biases."""
        weights = {n: self._moved(VALUE + n, start) for n, start in self._weights.items()}
        biases = {n: self._moved(BIAS + n, start) for n, start in self._biases.items()}
        return base.with_weights(weights).with_biases(biases)

    def _moved(self, key: str, start: FloatArray) -> FloatArray:
        return np.asarray(start + self.units[key] * self.values[key], np.float32)

    def parameter_names(self) -> list[str]:
        """The student's inputs whose gradients are needed."""
        return list(self._inputs.values())

    def gradients(self, found: Mapping[str, np.ndarray], now: QParams) -> dict[str, np.ndarray]:
        """dL/dd by key."""
        return {k: np.asarray(found[n] * self.units[k]) for k, n in self._inputs.items()}


def root_mean_square(array: FloatArray) -> np.float32:
    """The root mean square; 1 where all values are zero."""
    mean = float(np.square(array, dtype=np.float64).mean()) if array.size else 0.0
    return np.float32(np.sqrt(mean) or 1.0)


class LatentWeights:
    """Trained float weights behind the integer weights of quantized layers.

    Args:
        layers: quantized layers; those with codebooks are left out.
        start: the quantization parameters to start from.

    Attributes:
        values: d by key, float32, in the shape of the weight.
        units: step_0 by key, in a shape that broadcasts to the weight's.
    """

    group = "weights"

    def __init__(self, layers: Sequence[LayerSpec], start: QParams) -> None:
        self._layers = {s.weight: s for s in layers if s.codebook is None}
        self._start = {weight: start.weights[weight] for weight in self._layers}
        self._on_grid = {
            w: start.thresholds[w] for w, spec in self._layers.items() if is_on_grid(spec, start)
        }
        self.values = {VALUE + w: np.zeros_like(array) for w, array in self._start.items()}
        self.units: dict[str, FloatArray | np.float32] = {
            VALUE + weight: _step(spec, start) for weight, spec in self._layers.items()
        }

    def project(self) -> None:
        """Does nothing: the values have no bounds."""

    def qparams(self, base: QParams) -> QParams:
        """The quantization parameters with the trained weights."""
        return base.with_weights(
            {
                weight: np.asarray(
                    (start + self.units[VALUE + weight] * self.values[VALUE + weight])
                    * self._factor(weight, base),
                    np.float32,
                )
                for weight, start in self._start.items()
            }
        )

    def _factor(self, weight: str, now: QParams) -> FloatArray | np.float32:
        """Step / step_0, of a shape that broadcasts to the weight's."""
        if weight not in self._on_grid:
            return np.float32(1)
        spec, first = self._layers[weight], self._on_grid[weight]
        return per_channel(now.thresholds[weight] / first, self._start[weight].ndim, spec.axis)

    def parameter_names(self) -> list[str]:
        """The student's inputs whose gradients are needed."""
        return list(self._layers)

    def gradients(self, found: Mapping[str, np.ndarray], now: QParams) -> dict[str, np.ndarray]:
        """dL/dd by key."""
        result = {}
        for weight, spec in self._layers.items():
            inside = is_unclipped(
                now.weights[weight], now.thresholds[weight], spec.num_bits, spec.axis
            )
            slope = np.where(inside, found[weight], np.float32(0))
            unit = self.units[VALUE + weight] * self._factor(weight, now)
            result[VALUE + weight] = np.asarray(slope * unit, np.float32)
        return result


def _step(spec: LayerSpec, start: QParams) -> FloatArray:
    steps = weight_scale(start.thresholds[spec.weight], spec.num_bits)
    return per_channel(steps, start.weights[spec.weight].ndim, spec.axis)
