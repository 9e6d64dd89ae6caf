"""The quantization parameters of a student, by name.

They are outside the graph. `Student.feeds` computes the student's inputs from them, and the export
writes them as integers and scales, so that both compute the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from onnxq.numerics.codebook import Codebook, look_up
from onnxq.numerics.corrections import weight_error_shift
from onnxq.numerics.quantizers import FloatArray, Range, fake_quant_weight, weight_scale
from onnxq.plan.spec import LayerSpec, TensorSpec

CORRECTED = ("Conv", "Gemm")
"""Operators whose bias can be corrected for the error of the weights."""


@dataclass(frozen=True)
class QParams:
    """Quantization parameters, and the float weights and biases that they quantize.

    All arrays are float32 unless said otherwise, all values real.

    Attributes:
        ranges: of activations, by tensor name.
        thresholds: T by weight name, (channels,) or (): weights are clipped to [-T, T]. Weights
            with a codebook have none.
        weights: float weights by weight name; those of retrained float layers too.
        biases: by layer name, (channels,), where they are parameters of the student.
        means: by layer name, the mean of each input channel, float64 (channels,), for layers with
            bias correction.
        codebooks: by weight name, for layers with one in the plan.
        factors: by layer name, (channels,), the layer's own factor of a shared weight; either sign.
    """

    ranges: dict[str, Range]
    thresholds: dict[str, FloatArray]
    weights: dict[str, FloatArray]
    biases: dict[str, FloatArray]
    means: dict[str, np.ndarray] = field(default_factory=dict)
    codebooks: dict[str, Codebook] = field(default_factory=dict)
    factors: dict[str, FloatArray] = field(default_factory=dict)

    def with_ranges(self, ranges: Mapping[str, Range]) -> QParams:
        """A copy with other ranges for some tensors."""
        return replace(self, ranges={**self.ranges, **ranges})

    def with_thresholds(self, thresholds: Mapping[str, FloatArray]) -> QParams:
        """A copy with other thresholds for some weights."""
        return replace(self, thresholds={**self.thresholds, **thresholds})

    def with_codebooks(self, codebooks: Mapping[str, Codebook]) -> QParams:
        """A copy with other codebooks for some weights."""
        return replace(self, codebooks={**self.codebooks, **codebooks})

    def with_weights(self, weights: Mapping[str, FloatArray]) -> QParams:
        """A copy with other float weights for some weights."""
        return replace(self, weights={**self.weights, **weights})

    def with_biases(self, biases: Mapping[str, FloatArray]) -> QParams:
        """A copy with other biases for some layers."""
        return replace(self, biases={**self.biases, **biases})

    def with_known(self, other: QParams) -> QParams:
        """A copy with the values that another student has for the same tensors and layers.

        Biases are corrected as in the other, and in no further layer.
        """
        return replace(
            self,
            ranges=_known(self.ranges, other.ranges),
            thresholds=_known(self.thresholds, other.thresholds),
            weights=_known(self.weights, other.weights),
            biases=_known(self.biases, other.biases),
            means={name: mean for name, mean in other.means.items() if name in self.biases},
            codebooks=_known(self.codebooks, other.codebooks),
            factors=_known(self.factors, other.factors),
        )

    def with_means(self, means: Mapping[str, np.ndarray]) -> QParams:
        """A copy whose biases are corrected with these mean inputs, and with no others."""
        return replace(self, means=dict(means))


Value = TypeVar("Value")


def _known(own: Mapping[str, Value], other: Mapping[str, Value]) -> dict[str, Value]:
    """The values of the other by the own names, the own where it has none."""
    return {name: other.get(name, value) for name, value in own.items()}


def range_inputs(spec: TensorSpec) -> tuple[str, ...]:
    """The names of the student's inputs for the range of an activation."""
    return tuple(f"{spec.name}.{parameter}" for parameter in spec.quantizer.parameters)


def range_feeds(tensors: Iterable[TensorSpec], qparams: QParams) -> dict[str, np.ndarray]:
    """The arrays for the inputs of `range_inputs`, float32 scalars by name."""
    return {
        name: np.asarray(value)
        for spec in tensors
        for name, value in zip(
            range_inputs(spec), spec.quantizer.values(qparams.ranges[spec.name]), strict=True
        )
    }


def quantized_inputs(tensors: Iterable[TensorSpec], layers: Iterable[LayerSpec]) -> list[str]:
    """The names of the student's inputs for ranges, and of those for weights."""
    ranges = [name for spec in tensors for name in range_inputs(spec)]
    return ranges + [spec.weight for spec in layers]


def needs_bias(spec: LayerSpec) -> bool:
    """Whether the layer's bias is an input of the student.

    It is where it is stored as integers, where it can be corrected, and in retrained layers.
    """
    return spec.bias is not None and (spec.compute != "weight-only" or spec.op_type in CORRECTED)


def bias_name(spec: LayerSpec) -> str:
    """The student's input for a layer's bias: one per layer, since each has its own scale."""
    return f"{spec.name}.bias"


def start_scale(spec: LayerSpec, qparams: QParams) -> FloatArray:
    """The scale of a layer's weight before a large bias raises it, (channels,) or ()."""
    if spec.codebook is not None:
        return qparams.codebooks[spec.weight].scale
    return weight_scale(qparams.thresholds[spec.weight], spec.num_bits)


def layer_scale(spec: LayerSpec, qparams: QParams, scale: FloatArray) -> FloatArray:
    """The scale under which a layer reads the integers of its weight, (channels,) or ().

    It is that of the weight. For a shared weight it is multiplied by the layer's own factor, and
    may be negative.
    """
    factor = qparams.factors.get(spec.name)
    return scale if factor is None else np.asarray(scale * factor, np.float32)


def fake_weight(spec: LayerSpec, qparams: QParams, scale: FloatArray) -> FloatArray:
    """The weight as the layer reads it: quantized and converted back, or from the codebook."""
    if spec.codebook is not None:
        return look_up(qparams.codebooks[spec.weight], scale, spec.axis)
    return fake_quant_weight(qparams.weights[spec.weight], scale, spec.num_bits, spec.axis)


def is_on_grid(spec: LayerSpec, qparams: QParams) -> bool:
    """Whether a weight equals its quantized value in every element, as after GPTQ.

    Its threshold has no straight-through gradient then, and changing it alone would undo the
    rounding.
    """
    fake = fake_weight(spec, qparams, start_scale(spec, qparams))
    return np.array_equal(fake, qparams.weights[spec.weight])


def corrected_bias(spec: LayerSpec, qparams: QParams, fake: FloatArray) -> FloatArray:
    """The bias to write, (channels,): b - e E[x] with e = fake - weight, where E[x] is known."""
    bias = qparams.biases[spec.name]
    mean = qparams.means.get(spec.name)
    if mean is None:
        return bias
    weight = qparams.weights[spec.weight]
    shift = weight_error_shift(weight, fake, mean, spec.op_type, spec.channel_axis)
    shift = shift * qparams.factors.get(spec.name, np.float32(1))
    return bias - shift.reshape(bias.shape)
