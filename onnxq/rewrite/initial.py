"""The numbers that a student starts with, from the calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import onnx_ir as ir

from onnxq.calibrate.statistics import TensorStatistics
from onnxq.numerics.clip import ClipMethod, clip_range
from onnxq.numerics.histogram import BINS_PER_SIDE
from onnxq.numerics.weight_clip import weight_threshold
from onnxq.plan.spec import Plan, TensorSpec
from onnxq.rewrite.quantizers import SMALLEST_WIDTH, Quantizers, Range, model_weights


def initial_quantizers(
    model: ir.Model, plan: Plan, statistics: Mapping[str, TensorStatistics], method: str
) -> Quantizers:
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
    }
    ranges = {name: tensor_range(s, statistics[name]) for name, s in plan.tensors.items()}
    return Quantizers(ranges, thresholds, weights, biases, float_biases=biases)


def tensor_range(spec: TensorSpec, statistics: TensorStatistics) -> Range:
    """(left, width) of one tensor by its clip method."""
    method = cast(ClipMethod, spec.calibration)
    seen = _attenuated(statistics, spec.slope) if spec.signed else statistics
    left, right = clip_range(seen, method, spec.num_bits, spec.signed, spec.symmetric)
    if spec.kind == "symmetric":
        left, right = -max(-left, right), max(-left, right)
    return float(left), float(max(right - left, SMALLEST_WIDTH))


def _attenuated(statistics: TensorStatistics, slope: float) -> TensorStatistics:
    """Statistics whose negative values count as little as their error will.

    The LeakyRelu that follows multiplies an error below zero by its slope, so its square
    by slope^2.
    """
    if slope == 1.0:
        return statistics
    counts = statistics.histogram.counts.copy()
    counts[:BINS_PER_SIDE] = np.rint(counts[:BINS_PER_SIDE] * slope**2)
    return replace(statistics, histogram=replace(statistics.histogram, counts=counts))
