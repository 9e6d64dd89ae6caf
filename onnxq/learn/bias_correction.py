"""Take out of each bias the mean error that the layer's quantized weights make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from onnxq.calibrate.calibrator import Batches, calibrate
from onnxq.numerics.bias_correction import weight_error_shift
from onnxq.numerics.qparams import FloatArray
from onnxq.plan.layers import weight_axis
from onnxq.plan.spec import LayerSpec
from onnxq.rewrite.quantizers import Quantizers, student_feeds
from onnxq.rewrite.student import Student
from onnxq.session import Arrays

CORRECTED = ("Conv", "Gemm")


class _Fed:
    """Samples with the student's parameters in every feed."""

    def __init__(self, samples: Batches, parameters: Mapping[str, np.ndarray]) -> None:
        self._samples, self._parameters = samples, parameters

    def batches(self, size: int) -> Iterator[Arrays]:
        """Feeds of at most `size` samples."""
        for feeds in self._samples.batches(size):
            yield {**feeds, **self._parameters}


def correct_biases(
    student: Student,
    quantizers: Quantizers,
    samples: Batches,
    batch_size: int,
    rounds: int = 2,
) -> Quantizers:
    """The numbers with corrected biases, b <- b_float - e E[x], e the error of the weights.

    E[x] is the mean of each input channel of the layer in the student itself. Correcting a
    layer moves the means that later layers read, so it is done in rounds, each from the
    float biases anew.

    Args:
        student: the student.
        quantizers: its numbers; the float biases are corrected, nothing else changes.
        samples: unlabelled samples.
        batch_size: samples in one run.
        rounds: passes over the samples.
    """
    for _ in range(rounds):
        quantizers = quantizers.with_biases(_corrected(student, quantizers, samples, batch_size))
    return quantizers


def _corrected(
    student: Student, quantizers: Quantizers, samples: Batches, batch_size: int
) -> dict[str, FloatArray]:
    layers = [
        spec
        for spec in student.plan.integer_layers()
        if spec.op_type in CORRECTED and spec.name in quantizers.biases
    ]
    inputs = {spec.name: _input_name(student, spec) for spec in layers}
    feeds = student_feeds(student.plan, quantizers, student.sources)
    wanted = list(dict.fromkeys(inputs.values()))
    found = calibrate(student.model, [], _Fed(samples, feeds), batch_size, wanted)
    biases: dict[str, FloatArray] = {}
    for spec in layers:
        mean = found[inputs[spec.name]].channel_mean
        assert mean is not None
        node = student.model.graph.node(spec.name)
        weight = quantizers.weights[spec.weight]
        axis = weight_axis(node, weight.ndim)
        shift = weight_error_shift(weight, feeds[spec.weight], mean, spec.op_type, axis)
        bias = quantizers.float_biases[spec.name]
        biases[spec.name] = bias - shift.reshape(bias.shape)
    return biases


def _input_name(student: Student, spec: LayerSpec) -> str:
    value = student.model.graph.node(spec.name).inputs[0]
    assert value is not None
    return str(value.name)
