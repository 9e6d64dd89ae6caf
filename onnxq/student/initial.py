"""The numbers that a student starts with, from the calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import onnx_ir as ir

from onnxq.calibrate.calibrator import TensorStatistics
from onnxq.numerics.clip import ClipMethod, clip_range
from onnxq.numerics.clip_mse import weight_threshold
from onnxq.numerics.codebook import Codebook, fit_codebook, share_biases
from onnxq.numerics.qparams import FloatArray
from onnxq.plan.spec import Plan, TensorSpec
from onnxq.student.qparams import SMALLEST_WIDTH, QParams, Range, model_factors, model_weights


def initial_qparams(
    model: ir.Model, plan: Plan, statistics: Mapping[str, TensorStatistics], method: str
) -> QParams:
    """Ranges by each tensor's clip method, thresholds by the recipe's, weights as they are.

    Args:
        model: the teacher.
        plan: the plan.
        statistics: of every tensor of the plan.
        method: the clip method of the weights.
    """
    weights, biases = model_weights(model, plan)
    thresholds = {
        spec.weight: weight_threshold(weights[spec.weight], method, spec.num_bits, spec.axis)
        for spec in plan.layers.values()
        if spec.codebook is None
    }
    ranges = {name: tensor_range(s, statistics[name]) for name, s in plan.tensors.items()}
    codebooks = fit_codebooks(plan, weights)
    factors = model_factors(model, plan)
    return QParams(ranges, thresholds, weights, biases, codebooks=codebooks, factors=factors)


def with_shared_biases(qparams: QParams, plan: Plan, count: int) -> QParams:
    """The numbers with the biases of each quantized layer replaced by their K centroids.

    Args:
        qparams: the numbers.
        plan: the plan.
        count: K.
    """
    biases = qparams.biases
    shared = {name: share_biases(biases[name], count) for name in plan.layers if name in biases}
    return qparams.with_biases(shared)


def fit_codebooks(plan: Plan, weights: Mapping[str, FloatArray]) -> dict[str, Codebook]:
    """The codebook of every weight that the plan has one for; int8 where integers read it."""
    integer = {spec.weight for spec in plan.integer_layers()}
    found: dict[str, Codebook] = {}
    for spec in plan.layers.values():
        if spec.codebook is not None and spec.weight not in found:
            largest = spec.centroid_max if spec.weight in integer else None
            weight = weights[spec.weight]
            found[spec.weight] = fit_codebook(weight, spec.codebook, spec.axis, largest)
    return found


def tensor_range(spec: TensorSpec, statistics: TensorStatistics) -> Range:
    """(left, width) of one tensor by its clip method."""
    method = cast(ClipMethod, spec.calibration)
    left, right = clip_range(statistics, method, spec.num_bits, spec.signed, spec.symmetric)
    if spec.kind == "symmetric":
        left, right = -max(-left, right), max(-left, right)
    return float(left), float(max(right - left, SMALLEST_WIDTH))
