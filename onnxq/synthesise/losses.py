"""What tells a good batch of made images from a bad one, as nodes of a graph.

Each function adds nodes and gives a float scalar, a mean over the batch: lower is better.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.synthesise.batch_norms import BatchNorm
from onnxq.synthesise.parts import Parts

TINY = 1e-12
"""Keeps the logarithm of a class that no image has finite, and the length of no feature above 0."""
MARGIN = 2.0
"""Of the two likeliest classes' logits: odds of e^2 = 7.4 to 1."""


def inception_score(parts: Parts, logits: ir.Value, alpha: float) -> ir.Value:
    """-(1/N) sum_i p_i log(p_i / q^alpha), summed over classes, q the mean of p over the batch.

    Li et al., DFQF, 2020, equation 5. It is the mean entropy of an image's classes, less alpha
    times the entropy of the batch's: each image is clear, and all classes occur.

    Args:
        parts: takes the nodes.
        logits: (samples, classes), with dimensions of 1 behind.
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

    The generator's adversarial loss (equation 8) is the same with the other sign.

    Args:
        parts: takes the nodes.
        student: logits, (samples, classes), with dimensions of 1 behind.
        teacher: likewise.
    """
    logs, others = (
        parts.op("LogSoftmax", parts.op("Flatten", each, axis=1), axis=-1)
        for each in (student, teacher)
    )
    products = parts.op("Mul", parts.op("Exp", others), logs)
    return parts.op("Neg", parts.mean(parts.sum(products, [1]), None))


def batch_norm_moments(parts: Parts, tensor: ir.Value, norm: BatchNorm) -> ir.Value:
    """Mean over channels of v' - v log v' + (m' - m)^2, less its least value, v - v log v.

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


def total_variation(parts: Parts, images: ir.Value, axes: tuple[int, int]) -> ir.Value:
    """Mean squared difference of neighbours along height plus that along width.

    The image prior of Mahendran and Vedaldi 2015 with exponent 2: nature is smooth.

    Args:
        parts: takes the nodes.
        images: of rank 4.
        axes: those of height and width, both of size 2 at least.
    """
    terms = []
    for axis in axes:
        place = parts.integers([axis])
        after = parts.op("Slice", images, parts.integers([1]), parts.integers([2**31]), place)
        before = parts.op("Slice", images, parts.integers([0]), parts.integers([-1]), place)
        terms.append(parts.mean(parts.square(parts.op("Sub", after, before)), None))
    return parts.op("Add", *terms)


def boundary_distance(parts: Parts, logits: ir.Value) -> ir.Value:
    """(1/N) sum_i max(0, z_i(1) - z_i(2) - 2): how far images are from a boundary of two classes.

    z_i(1) and z_i(2) are the two largest logits of an image, so that their difference is log(p_1 /
    p_2). Samples near the boundary of two classes support it (Choi et al., Qimera, NeurIPS 2021),
    and hard samples, of small p_1, teach a quantized student most (Li et al., HAST, CVPR 2023).
    The hinge on the difference is our own: its slope does not vanish where p_1 is nearly 1.

    Args:
        parts: takes the nodes.
        logits: (samples, classes), two classes at least, with dimensions of 1 behind.
    """
    largest = parts.largest(parts.op("Flatten", logits, axis=1), 2)
    signs = parts.constant(np.array([[1], [-1]], np.float32))
    margins = parts.op("Sub", parts.op("MatMul", largest, signs), parts.scalar(MARGIN))
    return parts.mean(parts.op("Relu", margins), None)


def frame_potential(parts: Parts, features: ir.Value) -> ir.Value:
    """(1/N^2) sum_ij (u_i . u_j)^2, u_i = (f_i - f) / |f_i - f|, f the mean of f_i over the batch.

    Benedetto and Fickus, Finite Normalized Tight Frames, 2003. It is 1 where all features of a
    batch lie on one line and 1/N where no two are alike. Images of different classes are nearly
    orthogonal anyway: what is pushed apart are those of one class, whose variety made images lack
    (Zhong et al., IntraQ, CVPR 2022).

    Args:
        parts: takes the nodes.
        features: (samples, ...), flattened.
    """
    rows = parts.op("Flatten", features, axis=1)
    shifted = parts.op("Sub", rows, parts.mean(rows, [0], keep=True))
    squares = parts.sum(parts.square(shifted), [1], keep=True)
    lengths = parts.op("Sqrt", parts.op("Add", squares, parts.scalar(TINY)))
    units = parts.op("Div", shifted, lengths)
    products = parts.op("MatMul", units, parts.op("Transpose", units, perm=[1, 0]))
    return parts.mean(parts.square(products), None)


def _statistics(parts: Parts, tensor: ir.Value, norm: BatchNorm) -> tuple[ir.Value, ir.Value]:
    """Mean and variance of each channel over the batch, (channels,) each, epsilon in the latter."""
    others = [axis for axis in range(norm.rank) if axis != 1]
    mean = parts.mean(tensor, others, keep=True)
    squares = parts.square(parts.op("Sub", tensor, mean))
    variance = parts.op("Add", parts.mean(squares, others), parts.scalar(norm.epsilon))
    return parts.op("Reshape", mean, parts.integers([-1])), variance
