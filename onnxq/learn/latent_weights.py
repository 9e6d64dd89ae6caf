"""Float weights behind quantized ones, trained straight-through (Bengio et al., 2013).

    W~ = fake_quant(w),   dL/dw = dL/dW~ where |w| is within the codes, 0 where it is clipped

Trained is d in w = w_0 + unit d, the unit the root mean square of the layer's weights: one
learning rate serves all layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxq.learn.free_values import VALUE, root_mean_square
from onnxq.numerics.qparams import FloatArray, inside_codes
from onnxq.plan.spec import LayerSpec
from onnxq.rewrite.quantizers import Quantizers


class LatentWeights:
    """The trained weights of quantized layers.

    Args:
        layers: layers whose weights are codes; of those in codebooks nothing is trained.
        start: the numbers to start from.

    Attributes:
        values: d by key, float32, in the shape of the weight.
        units: the unit by key.
    """

    group = "weights"

    def __init__(self, layers: Sequence[LayerSpec], start: Quantizers) -> None:
        self._layers = {s.weight: s for s in layers if s.codebook is None}
        self._start = {weight: start.weights[weight] for weight in self._layers}
        self.values = {VALUE + w: np.zeros_like(array) for w, array in self._start.items()}
        self.units: dict[str, FloatArray | np.float32] = {
            VALUE + w: root_mean_square(array) for w, array in self._start.items()
        }

    def project(self) -> None:
        """Nothing: the values have no bounds."""

    def quantizers(self, base: Quantizers) -> Quantizers:
        """The numbers with the trained weights."""
        return base.with_weights(
            {
                weight: np.asarray(
                    start + self.units[VALUE + weight] * self.values[VALUE + weight], np.float32
                )
                for weight, start in self._start.items()
            }
        )

    def parameter_names(self) -> list[str]:
        """The student's inputs whose gradients are wanted."""
        return list(self._layers)

    def gradients(self, found: Mapping[str, np.ndarray], now: Quantizers) -> dict[str, np.ndarray]:
        """dL/dd by key."""
        result = {}
        for weight, spec in self._layers.items():
            inside = inside_codes(
                now.weights[weight], now.thresholds[weight], spec.num_bits, spec.axis
            )
            slope = np.where(inside, found[weight], np.float32(0))
            result[VALUE + weight] = np.asarray(slope * self.units[VALUE + weight], np.float32)
        return result
