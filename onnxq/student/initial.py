"""The quantization parameters that a student starts with, from calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import onnx_ir as ir

from onnxq.calibrate.calibrator import TensorStatistics
from onnxq.graph.facts import constant
from onnxq.numerics.clip import ClipMethod, calibrated_range
from onnxq.numerics.clip_mse import weight_threshold
from onnxq.numerics.codebook import Codebook, fit_codebook, share_biases
from onnxq.numerics.qparams import FloatArray
from onnxq.numerics.quantizers import Range
from onnxq.plan.spec import Plan
from onnxq.student.qparams import QParams, needs_bias


def initial_qparams(
    model: ir.Model, plan: Plan, statistics: Mapping[str, TensorStatistics], method: str
) -> QParams:
    """Ranges by each tensor's calibration method, thresholds by the recipe's, float weights.

    Args:
        model: the teacher.
        plan: the plan.
        statistics: of every tensor of the plan.
        method: the calibration method of the weights.
    """
    weights, biases = model_weights(model, plan)
    thresholds = {
        spec.weight: weight_threshold(weights[spec.weight], method, spec.num_bits, spec.axis)
        for spec in plan.layers.values()
        if spec.codebook is None
    }
    ranges = {
        name: calibrated_range(
            statistics[name], cast(ClipMethod, spec.calibration), spec.num_bits, spec.kind
        )
        for name, spec in plan.tensors.items()
    }
    codebooks = fit_codebooks(plan, weights)
    factors = model_factors(model, plan)
    return QParams(ranges, thresholds, weights, biases, codebooks=codebooks, factors=factors)


def full_ranges(plan: Plan, statistics: Mapping[str, TensorStatistics]) -> dict[str, Range]:
    """The range of all values that calibration saw, by tensor of the plan."""
    return {
        name: calibrated_range(statistics[name], "max", spec.num_bits, spec.kind)
        for name, spec in plan.tensors.items()
    }


def with_shared_biases(qparams: QParams, plan: Plan, count: int) -> QParams:
    """A copy with the biases of each quantized layer replaced by their K centroids, K = `count`."""
    biases = qparams.biases
    shared = {name: share_biases(biases[name], count) for name in plan.layers if name in biases}
    return qparams.with_biases(shared)


def fit_codebooks(plan: Plan, weights: Mapping[str, FloatArray]) -> dict[str, Codebook]:
    """The codebook of every weight that has one in the plan; int8 for integer kernels."""
    integer = {spec.weight for spec in plan.integer_layers()}
    found: dict[str, Codebook] = {}
    for spec in plan.layers.values():
        if spec.codebook is not None and spec.weight not in found:
            largest = spec.centroid_max if spec.weight in integer else None
            weight = weights[spec.weight]
            found[spec.weight] = fit_codebook(weight, spec.codebook, spec.axis, largest)
    return found


def model_weights(
    model: ir.Model, plan: Plan
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """The model's float weights by weight name, and its biases by layer name."""
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
    """The factor of each layer for a shared weight, float32 (channels,), by layer name."""
    values = model.graph.initializers
    return {
        spec.name: _spread(_array(values[spec.factor]), spec.channels)
        for spec in plan.layers.values()
        if spec.factor is not None
    }


def _spread(bias: FloatArray, channels: int) -> FloatArray:
    """A bias or factor as one value per channel, (channels,)."""
    return np.broadcast_to(bias.reshape(-1), (channels,)).copy()


def _array(value: ir.Value) -> FloatArray:
    array = constant(value)
    assert array is not None
    return np.asarray(array, dtype=np.float32)
