"""Float weights behind quantized ones, trained straight-through (Bengio et al., 2013).

    W~ = fake_quant(w),   dL/dw = dL/dW~ where |w| is within the codes, 0 where it is clipped

Trained is d in w = w_0 + step_0 d: what matters is how far a weight is from the next code, so that
one learning rate serves all layers and all widths. Weights that lie on their grid at the start go
along with a step that is learned beside them: w = (w_0 + step_0 d) step / step_0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxq.learn.free_values import VALUE
from onnxq.numerics.qparams import FloatArray, inside_codes, per_channel, weight_scale
from onnxq.plan.spec import LayerSpec
from onnxq.rewrite.quantizers import Quantizers, on_grid


class LatentWeights:
    """The trained weights of quantized layers.

    Args:
        layers: layers whose weights are codes; of those in codebooks nothing is trained.
        start: the numbers to start from.

    Attributes:
        values: d by key, float32, in the shape of the weight.
        units: step_0 by key, of a shape that broadcasts to the weight's.
    """

    group = "weights"

    def __init__(self, layers: Sequence[LayerSpec], start: Quantizers) -> None:
        self._layers = {s.weight: s for s in layers if s.codebook is None}
        self._start = {weight: start.weights[weight] for weight in self._layers}
        self._coded = {
            w: start.thresholds[w] for w, spec in self._layers.items() if on_grid(spec, start)
        }
        self.values = {VALUE + w: np.zeros_like(array) for w, array in self._start.items()}
        self.units: dict[str, FloatArray | np.float32] = {
            VALUE + weight: _step(spec, start) for weight, spec in self._layers.items()
        }

    def project(self) -> None:
        """Nothing: the values have no bounds."""

    def quantizers(self, base: Quantizers) -> Quantizers:
        """The numbers with the trained weights."""
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

    def _factor(self, weight: str, now: Quantizers) -> FloatArray | np.float32:
        """Step / step_0, of a shape that broadcasts to the weight's."""
        if weight not in self._coded:
            return np.float32(1)
        spec, first = self._layers[weight], self._coded[weight]
        return per_channel(now.thresholds[weight] / first, self._start[weight].ndim, spec.axis)

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
            unit = self.units[VALUE + weight] * self._factor(weight, now)
            result[VALUE + weight] = np.asarray(slope * unit, np.float32)
        return result


def _step(spec: LayerSpec, start: Quantizers) -> FloatArray:
    steps = weight_scale(start.thresholds[spec.weight], spec.num_bits)
    return per_channel(steps, start.weights[spec.weight].ndim, spec.axis)
