"""Weights of layers left float, and biases, trained as they are (Thonglek et al., 2020).

    w = w_0 + unit d,   dL/dd = unit dL/dw

Trained is d, which starts at 0. The unit is the root mean square of w_0: a step then moves every
layer by the same share of its size, and one learning rate serves them and threshold scales. The
int32 grid of an integer layer's bias is passed straight through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxq.numerics.qparams import FloatArray
from onnxq.plan.spec import LayerSpec
from onnxq.rewrite.quantizers import Quantizers, bias_name

VALUE, BIAS = "value:", "bias:"


class FreeValues:
    """The trained weights and biases.

    Args:
        start: the numbers to start from.
        weights: layers whose weights are trained.
        biases: layers whose biases are.
        group: the option of `learn` that asks for them.

    Attributes:
        values: d by key, float32, in the shape of the weight or bias.
        units: the unit by key.
    """

    def __init__(
        self,
        start: Quantizers,
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
        """Nothing: the values have no bounds."""

    def quantizers(self, base: Quantizers) -> Quantizers:
        """The numbers with the trained weights and biases."""
        weights = {n: self._moved(VALUE + n, start) for n, start in self._weights.items()}
        biases = {n: self._moved(BIAS + n, start) for n, start in self._biases.items()}
        return base.with_weights(weights).with_biases(biases)

    def _moved(self, key: str, start: FloatArray) -> FloatArray:
        return np.asarray(start + self.units[key] * self.values[key], np.float32)

    def parameter_names(self) -> list[str]:
        """The student's inputs whose gradients are wanted."""
        return list(self._inputs.values())

    def gradients(self, found: Mapping[str, np.ndarray], now: Quantizers) -> dict[str, np.ndarray]:
        """dL/dd by key."""
        return {k: np.asarray(found[n] * self.units[k]) for k, n in self._inputs.items()}


def root_mean_square(array: FloatArray) -> np.float32:
    """The root mean square; 1 where all is zero."""
    mean = float(np.square(array, dtype=np.float64).mean()) if array.size else 0.0
    return np.float32(np.sqrt(mean) or 1.0)
