"""The arithmetic of inference BatchNormalization as a factor and a term per channel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.normalise.facts import constant, float_attribute, input_at, int_attribute, is_used


def batch_norm_refusal(node: ir.Node) -> str | None:
    """Why a BatchNormalization is not a fixed factor and term; None where it is."""
    if int_attribute(node, "training_mode", 0) or any(is_used(v) for v in node.outputs[1:]):
        return "it is in training mode"
    parameters = [constant(input_at(node, index)) for index in range(1, 5)]
    if any(array is None for array in parameters):
        return "its parameters are not constant"
    if len({array.shape for array in parameters if array is not None}) > 1:
        return "its parameters differ in shape"
    return None


def batch_norm_affine(node: ir.Node) -> tuple[np.ndarray, np.ndarray]:
    """Factor s and term t with BN(x) = s·x + t, float64 `(channels,)` each.

    s = γ / √(σ² + ε) and t = β − s·μ (Ioffe & Szegedy 2015, algorithm 2).
    """
    parameters = [constant(node.inputs[index]) for index in range(1, 5)]
    gamma, beta, mean, variance = (p.astype(np.float64) for p in parameters if p is not None)
    scale = gamma / np.sqrt(variance + float_attribute(node, "epsilon", 1e-5))
    return scale, beta - scale * mean
