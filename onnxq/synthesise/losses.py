"""Losses of synthetic images, by classes and by the statistics that BatchNormalization keeps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.graph.facts import constant, is_op, rank
from onnxq.normalise.affine import batch_norm_refusal
from onnxq.synthesise.parts import Parts

FOLDED = (
    "the model has no BatchNormalization whose statistics synthetic images could match: its "
    "exporter folded it, or it never had any; torch.onnx.export keeps it with dynamo=False and "
    "training=TrainingMode.PRESERVE (of a model in eval mode), onnxsim with skip_fuse_bn=True"
)
"""A note for the user of a model without statistics."""


@dataclass(frozen=True)
class BatchNorm:
    """The running statistics of one BatchNormalization.

    Attributes:
        name: of the node.
        tensor: its input, (samples, channels, ...).
        rank: the number of dimensions of its input.
        mean: the running mean, float32 `(channels,)`.
        variance: the running variance, float32 `(channels,)`.
        epsilon: added to the variance by the node.
    """

    name: str
    tensor: str
    rank: int
    mean: np.ndarray
    variance: np.ndarray
    epsilon: float


def find_batch_norms(model: ir.Model) -> list[BatchNorm]:
    """The BatchNormalization nodes of an unfolded model that have statistics, in graph order.

    Nodes in training mode, with computed parameters, or with an input of unknown rank are left out.
    """
    found = []
    for node in model.graph:
        if not is_op(node, "BatchNormalization") or batch_norm_refusal(node) is not None:
            continue
        source, dimensions = node.inputs[0], rank(node.inputs[0])
        mean, variance = (constant(node.inputs[index]) for index in (3, 4))
        assert source is not None and mean is not None and variance is not None
        if dimensions is None or dimensions < 2:
            continue
        found.append(
            BatchNorm(
                str(node.name),
                str(source.name),
                dimensions,
                mean.astype(np.float32),
                variance.astype(np.float32),
                node.attributes.get_float("epsilon", 1e-5),
            )
        )
    return found


TINY = 1e-12
"""Keeps the logarithm of a class that no image has finite."""


def inception_score(parts: Parts, logits: ir.Value, alpha: float) -> ir.Value:
    """-(1/N) sum_i p_i log(p_i / q^alpha), summed over classes, q the mean of p over the batch.

    Li et al., DFQF, 2020, equation 5: the mean entropy of an image's classes, less alpha times the
    entropy of the batch's classes. Each image is clear, and all classes occur.

    Args:
        parts: takes the nodes.
        logits: (samples, classes), maybe with trailing dimensions of 1.
        alpha: the weight of variety.
    """
    logs = parts.op("LogSoftmax", parts.op("Flatten", logits, axis=1), axis=-1)
    chances = parts.op("Exp", logs)
    clear = parts.mean(parts.sum(parts.op("Mul", chances, logs), [1]), None)
    batch = parts.mean(chances, [0], keep=True)
    batch_logs = parts.op("Log", parts.op("Add", batch, parts.scalar(TINY)))
    varied = parts.sum(parts.op("Mul", batch, batch_logs), None)
    return parts.op("Sub", parts.op("Mul", varied, parts.scalar(alpha)), clear)


def cross_entropy(parts: Parts, student: ir.Value, teacher: ir.Value) -> ir.Value:
    """-(1/N) sum_i p_T log p_S, summed over classes: a student's loss (DFQF, equation 2).

    The generator's adversarial loss (equation 8) is the same with the opposite sign.

    Args:
        parts: takes the nodes.
        student: logits, (samples, classes), maybe with trailing dimensions of 1.
        teacher: likewise.
    """
    logs, others = (
        parts.op("LogSoftmax", parts.op("Flatten", each, axis=1), axis=-1)
        for each in (student, teacher)
    )
    products = parts.op("Mul", parts.op("Exp", others), logs)
    return parts.op("Neg", parts.mean(parts.sum(products, [1]), None))


def batch_norm_moments(parts: Parts, tensor: ir.Value, norm: BatchNorm) -> ir.Value:
    """Mean over channels of v' - v log v' + (m' - m)^2, less its minimum, v - v log v.

    Li et al., DFQF, 2020, equation 7: m' and v' are mean and variance of the batch, m and v the
    running ones. Zero where they are equal.
    """
    mean, variance = _statistics(parts, tensor, norm)
    stored = norm.variance.astype(np.float64) + norm.epsilon
    least = parts.constant((stored - stored * np.log(stored)).astype(np.float32))
    logs = parts.op("Mul", parts.constant(stored.astype(np.float32)), parts.op("Log", variance))
    spread = parts.op("Sub", parts.op("Sub", variance, logs), least)
    shift = parts.square(parts.op("Sub", mean, parts.constant(norm.mean)))
    return parts.mean(parts.op("Add", spread, shift), None)


def batch_norm_divergence(parts: Parts, tensor: ir.Value, norm: BatchNorm) -> ir.Value:
    """Mean over channels of KL(N(m', v') || N(m, v)), in nats.

    Li et al., DFQF, 2020, equation 6: ((v' + (m' - m)^2) / v - 1 - log(v' / v)) / 2. Unlike
    equation 7 it does not depend on the scale of a channel.
    """
    mean, variance = _statistics(parts, tensor, norm)
    stored = norm.variance + np.float32(norm.epsilon)
    inverse = parts.constant((1 / stored).astype(np.float32))
    ratio = parts.op("Mul", variance, inverse)
    shift = parts.op("Mul", parts.square(parts.op("Sub", mean, parts.constant(norm.mean))), inverse)
    spread = parts.op("Sub", parts.op("Sub", ratio, parts.op("Log", ratio)), parts.scalar(1.0))
    return parts.op("Mul", parts.mean(parts.op("Add", spread, shift), None), parts.scalar(0.5))


def _statistics(parts: Parts, tensor: ir.Value, norm: BatchNorm) -> tuple[ir.Value, ir.Value]:
    """Mean and variance plus epsilon of each channel over the batch, (channels,) each."""
    others = [axis for axis in range(norm.rank) if axis != 1]
    mean = parts.mean(tensor, others, keep=True)
    squares = parts.square(parts.op("Sub", tensor, mean))
    variance = parts.op("Add", parts.mean(squares, others), parts.scalar(norm.epsilon))
    return parts.op("Reshape", mean, parts.integers([-1])), variance
