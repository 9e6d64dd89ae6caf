"""Bias correction: subtract the mean error of a layer's quantized weights from its bias.

E[x] is the mean of each input channel of the layer in the float model, which calibration has seen
anyway. Means of the student's own inputs correct no better, at 8 or at 4 bits
(`benchmarks/cost.md`), and would cost passes of their own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxq.calibrate.calibrator import TensorStatistics
from onnxq.options.recipe import Recipe
from onnxq.plan.spec import Plan
from onnxq.student.qparams import CORRECTED, QParams, needs_bias


def layer_inputs(model: ir.Model, plan: Plan) -> dict[str, str]:
    """By layer whose bias can be corrected, the name of the tensor that it reads."""
    found = {}
    for spec in plan.layers.values():
        if needs_bias(spec) and spec.op_type in CORRECTED:
            value = model.graph.node(spec.name).inputs[0]
            assert value is not None
            found[spec.name] = str(value.name)
    return found


def missing_statistics(
    model: ir.Model, plan: Plan, recipe: Recipe, known: Mapping[str, TensorStatistics]
) -> tuple[list[str], set[str]]:
    """What is still to be calibrated: tensors for their ranges, and tensors for their means.

    Args:
        model: the float model.
        plan: its plan.
        recipe: says whether biases are corrected.
        known: statistics so far.
    """
    tensors = [t for t in plan.tensors if t not in known or not known[t].has_range]
    inputs = set(layer_inputs(model, plan).values()) if recipe.bias_correction else set()
    averaged = {name for name, found in known.items() if found.channel_mean is not None}
    # Statistics that are measured again replace the mean that was known.
    return tensors, inputs - averaged | averaged.intersection(tensors)


def correct_biases(
    model: ir.Model, plan: Plan, qparams: QParams, statistics: Mapping[str, TensorStatistics]
) -> QParams:
    """The quantization parameters with biases corrected by b <- b - e E[x], e the weights' error.

    Args:
        model: the float model.
        plan: its plan.
        qparams: quantization parameters; only the stored mean inputs change.
        statistics: of the tensors that the layers read, with the means of their channels.
    """
    inputs = layer_inputs(model, plan).items()
    means = {name: statistics[tensor].channel_mean for name, tensor in inputs}
    return qparams.with_means(
        {name: mean for name, mean in means.items() if mean is not None and np.isfinite(mean).all()}
    )
