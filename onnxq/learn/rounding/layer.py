"""One layer: its scales, codes and bias from the moments around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxq.learn.rounding.moments import Moments
from onnxq.numerics.error_feedback import Floats, quadratic
from onnxq.numerics.layer_rounding import round_layer
from onnxq.numerics.qparams import FloatArray, per_channel, weight_quant_max, weight_scale
from onnxq.plan.spec import LayerSpec
from onnxq.rewrite.quantizers import Quantizers

ROWS_OF_A_SAMPLE = 8
"""Independent rows that the moments take a sample to hold: neighbours in an image are alike."""


@dataclass(frozen=True)
class FittedLayer:
    """The numbers of one layer.

    Attributes:
        threshold: T, (channels,) or ().
        weight: scale * code, of the weight's own shape.
        bias: (channels,); None where the layer's bias is not free.
        error: mean squared error of the outputs that the codes add, damping included.
        start_error: the same with the float weights rounded to nearest.
    """

    threshold: FloatArray
    weight: FloatArray
    bias: FloatArray | None
    error: float
    start_error: float

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, ready for a checkpoint."""
        errors = np.array([self.error, self.start_error])
        found = {"threshold": self.threshold, "weight": self.weight, "errors": errors}
        return found if self.bias is None else {**found, "bias": self.bias}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FittedLayer:
        """What `arrays` gave."""
        error, start_error = arrays["errors"].tolist()
        bias = arrays.get("bias")
        return cls(arrays["threshold"], arrays["weight"], bias, error, start_error)

    def put_into(self, quantizers: Quantizers, spec: LayerSpec) -> Quantizers:
        """The numbers with this layer's."""
        found = quantizers.with_weights({spec.weight: self.weight})
        found = found.with_thresholds({spec.weight: self.threshold})
        if self.bias is None:
            return found
        means = {name: mean for name, mean in found.means.items() if name != spec.name}
        return found.with_biases({spec.name: self.bias}).with_means(means)


def fit_layer(
    spec: LayerSpec,
    moments: Moments,
    samples: int,
    weight: FloatArray,
    scale: FloatArray,
    bias: FloatArray | None,
) -> FittedLayer:
    """The codes of least squared error of the layer's output, and the bias that goes with them.

    Args:
        spec: the layer.
        moments: of its inputs and wanted outputs.
        samples: that the moments were taken from.
        weight: the float weight.
        scale: to start from, (channels,) or ().
        bias: what the layer adds and goes on to add, (channels,); None where it is free to
            become E[t] - W~ E[x].
    """
    geometry = moments.geometry
    rows = geometry.to_rows(weight.astype(np.float64))
    fixed = None if bias is None else bias.astype(np.float64).reshape(rows.shape[:2])
    form = quadratic(*moments.second(fixed), rows, ROWS_OF_A_SAMPLE * samples)
    shared = spec.axis is None
    start = np.broadcast_to(scale if shared else scale.reshape(rows.shape[:2]), rows.shape[:2])
    limit = weight_quant_max(spec.num_bits)
    found = round_layer(form, rows, start.astype(np.float64), limit, shared=shared)
    flat = found.scale.reshape(-1) * limit
    threshold = np.asarray(flat[0] if shared else flat, np.float32)
    codes = geometry.from_rows(found.codes).astype(np.float32)
    real = codes * per_channel(weight_scale(threshold, spec.num_bits), weight.ndim, spec.axis)
    fitted = None if bias is not None else _free_bias(moments, geometry.to_rows(real))
    return FittedLayer(threshold, real, fitted, found.error, found.start_error)


def _free_bias(moments: Moments, rows: Floats) -> FloatArray:
    """E[t] - W~ E[x], (channels,)."""
    x, t = moments.means()
    shift = (rows.astype(np.float64) @ x[..., None])[..., 0]
    return np.asarray((t - shift).reshape(-1), np.float32)
