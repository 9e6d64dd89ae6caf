"""The numbers of a student: ranges, thresholds, weights and biases, by name.

They live outside the graph. The student takes what `Student.feeds` computes from them, the
export writes the same numbers as codes and scales, so both compute the same thing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxq.graph.facts import constant
from onnxq.numerics.bias_correction import weight_error_shift
from onnxq.numerics.codebook import Codebook, look_up
from onnxq.numerics.qparams import (
    FloatArray,
    affine_qparams,
    fake_quant_weight,
    quant_max,
    weight_quant_max,
    weight_scale,
)
from onnxq.plan.spec import LayerSpec, Plan, TensorSpec

Range = tuple[float, float]
"""(left, width) of an activation's range, real."""

CORRECTED = ("Conv", "Gemm")
"""Operators whose bias can be corrected for the error of the weights."""

SMALLEST_WIDTH = 1e-8
"""A tensor that is always zero gets this width: safe to divide by."""


@dataclass(frozen=True)
class QParams:
    """Everything that turns a plan into numbers.

    Attributes:
        ranges: (left, width) by tensor name; a symmetric range has left = -width / 2.
        thresholds: T by weight name, shape (channels,) or (), the clip bound of the weights;
            not of those in a codebook.
        weights: the float weights by weight name; those of retrained float layers too.
        biases: the float biases by layer name, where they are parameters.
        means: the mean of each input channel by layer name, for layers whose bias is
            corrected for the mean error that their quantized weights make.
        codebooks: by weight name, for layers whose plan has one.
        factors: by layer name, float32 (channels,), what the weight is multiplied by for that
            layer alone, where layers share it; either sign.
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

    def with_means(self, means: Mapping[str, np.ndarray]) -> QParams:
        """A copy whose biases are corrected with these mean inputs."""
        return replace(self, means=dict(means))


def model_weights(
    model: ir.Model, plan: Plan
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """The float weights by weight name and biases by layer name, as the model holds them."""
    values = model.graph.initializers
    layers = [*plan.layers.values(), *plan.float_layers.values()]
    weights = {s.weight: _array(values[s.weight]) for s in layers}
    biases = {
        s.name: _spread(_array(values[s.bias]), weights[s.weight].shape[s.channel_axis])
        for s in layers
        if s.bias and needs_bias(s)
    }
    return weights, biases


def model_factors(model: ir.Model, plan: Plan) -> dict[str, FloatArray]:
    """What each layer multiplies a shared weight by, (channels,), by layer name."""
    values = model.graph.initializers
    return {
        spec.name: _spread(_array(values[spec.factor]), spec.channels)
        for spec in plan.layers.values()
        if spec.factor is not None
    }


def _spread(bias: FloatArray, channels: int) -> FloatArray:
    """A bias as one number per channel, (channels,)."""
    return np.broadcast_to(bias.reshape(-1), (channels,)).copy()


def needs_bias(spec: LayerSpec) -> bool:
    """Whether the layer's bias is a parameter of the student.

    It is where it is stored as integers, where it can be corrected, and in retrained layers.
    """
    return spec.bias is not None and (spec.compute != "weight-only" or spec.op_type in CORRECTED)


def _array(value: ir.Value) -> FloatArray:
    array = constant(value)
    assert array is not None
    return np.asarray(array, dtype=np.float32)


def limit_names(spec: TensorSpec) -> tuple[str, ...]:
    """The names of the student's inputs that hold the tensor's range."""
    limits = {"asymmetric": ("left", "width"), "positive": ("width",), "symmetric": ("threshold",)}
    return tuple(f"{spec.name}.{limit}" for limit in limits[spec.kind])


def quantized_inputs(tensors: Iterable[TensorSpec], layers: Iterable[LayerSpec]) -> list[str]:
    """The student's inputs that hold the ranges of tensors, and those that hold weights."""
    limits = [name for spec in tensors for name in limit_names(spec)]
    return limits + [spec.weight for spec in layers]


def range_of(spec: TensorSpec, left: float, width: float) -> Range:
    """(left, width) of a tensor; the kind says what left is, unless it is asymmetric."""
    if spec.kind == "asymmetric":
        return left, width
    return (0.0 if spec.kind == "positive" else -width / 2), width


def limits(spec: TensorSpec, bounds: Range) -> tuple[np.float32, ...]:
    """What those inputs take: (left, width), (width,) or (threshold,), float32."""
    left, width = np.float32(bounds[0]), np.float32(max(bounds[1], SMALLEST_WIDTH))
    if spec.kind == "asymmetric":
        return left, width
    return (width,) if spec.kind == "positive" else (width / np.float32(2),)


def tensor_qparams(spec: TensorSpec, bounds: Range) -> tuple[np.float32, int]:
    """The scale and zero point of a tensor, exactly as its fake-quant function computes them."""
    values = limits(spec, bounds)
    if spec.kind == "asymmetric":
        return affine_qparams(float(values[0]), float(values[1]), spec.num_bits)
    if spec.kind == "positive":
        return values[0] / np.float32(quant_max(spec.num_bits)), 0
    scale = values[0] / np.float32(weight_quant_max(spec.num_bits))
    return scale, 2 ** (spec.num_bits - 1)


def input_scale(plan: Plan, qparams: QParams, source: str) -> np.float32:
    """The scale of the codes that an integer layer reads; `source` names their tensor."""
    return tensor_qparams(plan.tensors[source], qparams.ranges[source])[0]


def layer_scale(spec: LayerSpec, qparams: QParams, scale: FloatArray) -> FloatArray:
    """The scale under which a layer reads its weight's integers.

    It is that of the weight. Where layers share the weight it is multiplied by the layer's own
    factor, and may be negative.

    Args:
        spec: the layer.
        qparams: the numbers.
        scale: of the weight, (channels,) or ().
    """
    factor = qparams.factors.get(spec.name)
    return scale if factor is None else np.asarray(scale * factor, np.float32)


def start_scale(spec: LayerSpec, qparams: QParams) -> FloatArray:
    """The scale of a layer's weight, (channels,) or (), before a bias has raised it."""
    if spec.codebook is not None:
        return qparams.codebooks[spec.weight].scale
    return weight_scale(qparams.thresholds[spec.weight], spec.num_bits)


def fake_weight(spec: LayerSpec, qparams: QParams, scale: FloatArray) -> FloatArray:
    """The weight as the layer reads it: quantized and back, or looked up."""
    if spec.codebook is not None:
        return look_up(qparams.codebooks[spec.weight], scale, spec.axis)
    return fake_quant_weight(qparams.weights[spec.weight], scale, spec.num_bits, spec.axis)


def on_grid(spec: LayerSpec, qparams: QParams) -> bool:
    """Whether a layer's weights are those that their codes stand for, as after rounding.

    Their threshold has no straight-through gradient then, and moving it alone would undo the
    rounding.
    """
    weight = qparams.weights[spec.weight]
    scale = weight_scale(qparams.thresholds[spec.weight], spec.num_bits)
    return np.array_equal(fake_quant_weight(weight, scale, spec.num_bits, spec.axis), weight)


def float_feeds(plan: Plan, qparams: QParams) -> dict[str, np.ndarray]:
    """Weights and biases of the retrained float layers."""
    specs = plan.float_layers.values()
    weights = {spec.weight: qparams.weights[spec.weight] for spec in specs}
    return weights | {bias_name(s): qparams.biases[s.name] for s in specs if needs_bias(s)}


def limit_feeds(plan: Plan, qparams: QParams) -> dict[str, np.ndarray]:
    """The limits of every tensor, by input name."""
    feeds: dict[str, np.ndarray] = {}
    for tensor in plan.tensors.values():
        values = limits(tensor, qparams.ranges[tensor.name])
        feeds |= {n: np.asarray(v) for n, v in zip(limit_names(tensor), values, strict=True)}
    return feeds


def corrected_bias(spec: LayerSpec, qparams: QParams, fake: FloatArray) -> FloatArray:
    """The bias to write: b - e E[x], e = fake - weight, where the layer's mean is known."""
    bias = qparams.biases[spec.name]
    mean = qparams.means.get(spec.name)
    if mean is None:
        return bias
    weight = qparams.weights[spec.weight]
    shift = weight_error_shift(weight, fake, mean, spec.op_type, spec.channel_axis)
    shift = shift * qparams.factors.get(spec.name, np.float32(1))
    return bias - shift.reshape(bias.shape)


def bias_name(spec: LayerSpec) -> str:
    """The student's input for a layer's bias; a layer's own, since its scale is its own."""
    return f"{spec.name}.bias"
