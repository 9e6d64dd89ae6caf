"""Bias correction: subtract the mean error of a layer's quantized weights from its bias."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxq.calibrate.calibrator import calibrate
from onnxq.forms.variant import Variant
from onnxq.plan.spec import LayerSpec
from onnxq.runtime.dataset import Dataset, Mapped, Samples
from onnxq.student.qparams import CORRECTED, QParams, needs_bias
from onnxq.student.student import Student

ROUNDS = 2
"""Passes over the samples: correcting a layer changes the inputs of later layers."""


def correct_biases(
    student: Student, qparams: QParams, samples: Dataset, batch_size: int
) -> QParams:
    """The quantization parameters with biases corrected by b <- b - e E[x], e the weights' error.

    E[x] is the mean of each input channel of the layer in the student itself. Correcting a layer
    changes the inputs of later layers, so it is done in rounds.

    Args:
        student: the student.
        qparams: its quantization parameters; only the stored mean inputs change.
        samples: unlabelled samples.
        batch_size: samples in one run.
    """
    for _ in range(ROUNDS):
        qparams = qparams.with_means(_means(student, qparams, samples, batch_size))
    return qparams


def _means(
    student: Student, qparams: QParams, samples: Dataset, batch_size: int
) -> dict[str, np.ndarray]:
    layers = [s for s in student.plan.layers.values() if needs_bias(s) and s.op_type in CORRECTED]
    inputs = {spec.name: _input_name(student, spec) for spec in layers}
    feeds = student.feeds(qparams)
    wanted = list(dict.fromkeys(inputs.values()))
    fed = Mapped(samples, lambda batches, _: ({**each, **feeds} for each in batches))
    found = calibrate(student.model, [], fed, batch_size, wanted)
    means = {name: found[tensor].channel_mean for name, tensor in inputs.items()}
    return {n: mean for n, mean in means.items() if mean is not None and np.isfinite(mean).all()}


def _input_name(student: Student, spec: LayerSpec) -> str:
    value = student.model.graph.node(spec.name).inputs[0]
    assert value is not None
    return str(value.name)


CORRECTION_SAMPLES = 128
"""Samples whose mean inputs correct the biases: means settle early."""


def corrected(variant: Variant, samples: Samples, batch_size: int) -> Variant:
    """The variant with corrected biases, where allowed and better on held-out samples.

    Args:
        variant: the student and its quantization parameters.
        samples: unlabelled samples.
        batch_size: samples in one run.
    """
    recipe = variant.recipe
    if not recipe.bias_correction or recipe.bias_centroids is not None:
        return variant
    taken = samples.take(CORRECTION_SAMPLES, recipe.seed)
    qparams = correct_biases(variant.student, variant.qparams, taken, batch_size)
    score = variant.score_of(qparams)
    if score >= variant.score:
        return variant
    return replace(variant, qparams=qparams, score=score, corrected=True)
