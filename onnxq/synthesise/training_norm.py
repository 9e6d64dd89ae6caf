"""BatchNormalization by the statistics of the batch, written as means and differences.

Ioffe and Szegedy 2015, algorithm 1. The engine has no gradient for the training mode of the node.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxq.normalise.facts import float_attribute
from onnxq.synthesise.parts import Parts


@dataclass(frozen=True)
class TrainingNorm:
    """What one node became; the statistics keep the rank of its input, `(1, channels, 1, ...)`.

    Attributes:
        output: (x - mean) / sqrt(variance + epsilon) * scale + bias.
        mean: of each channel, over the batch and all positions.
        variance: likewise, divided by their number.
    """

    output: ir.Value
    mean: ir.Value
    variance: ir.Value


def training_norm(
    parts: Parts, node: ir.Node, x: ir.Value, scale: ir.Value, bias: ir.Value
) -> TrainingNorm:
    """The nodes that a BatchNormalization node, whose input is of known rank, is in training."""
    source = node.inputs[0]
    assert source is not None and source.shape is not None
    rank = len(source.shape)
    others = [axis for axis in range(rank) if axis != 1]
    shape = parts.integers([1, -1, *[1] * (rank - 2)])
    mean = parts.mean(x, others, keep=True)
    shifted = parts.op("Sub", x, mean)
    variance = parts.mean(parts.square(shifted), others, keep=True)
    epsilon = parts.scalar(float_attribute(node, "epsilon", 1e-5))
    normal = parts.op("Div", shifted, parts.op("Sqrt", parts.op("Add", variance, epsilon)))
    scaled = parts.op("Mul", normal, parts.op("Reshape", scale, shape))
    output = parts.op("Add", scaled, parts.op("Reshape", bias, shape))
    return TrainingNorm(output, mean, variance)
