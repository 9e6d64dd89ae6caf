"""The settings that one weight can have, and the effect of each on the outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.cut import split
from onnxq.numerics.clip_mse import weight_threshold
from onnxq.numerics.codebook import Codebook, fit_codebooks
from onnxq.numerics.distances import (
    confidence_drop,
    holds_decisions,
    kl_divergence,
    log_probabilities,
    look_like_probabilities,
)
from onnxq.numerics.quantizers import FloatArray
from onnxq.plan.spec import LayerSpec, codebook_refusal, weight_bytes
from onnxq.runtime.session import Arrays, Feeds, SessionPool
from onnxq.search.table import FLOAT, Effect, Measure, Setting
from onnxq.student.build import free_parameters
from onnxq.student.qparams import (
    QParams,
    bias_name,
    corrected_bias,
    fake_weight,
    needs_bias,
)
from onnxq.student.student import Student

COUNTS = (2, 4, 8, 16, 32, 64, 128, 256)
"""Codebook sizes that a sweep tries: whole bits; sizes between them are interpolated."""

WIDTHS = (2, 3, 4, 5, 6, 8)
"""Bit widths that a sweep tries; 7 is interpolated."""


class Candidates:
    """The weight and biases of the layers of one weight, under each candidate setting.

    Args:
        student: gives the plan, and which layers read integer inputs.
        qparams: the student's quantization parameters.
        layers: the layers that read the weight.
        codebooks: whether codebooks are candidates beside integer weights.
        calibration: the calibration method of integer weights.

    Attributes:
        settings: the candidates, with the bytes that the weight then takes.
    """

    def __init__(
        self,
        student: Student,
        qparams: QParams,
        layers: Sequence[LayerSpec],
        *,
        codebooks: bool = True,
        calibration: str = "mse",
    ) -> None:
        self.layers = tuple(layers)
        self._student, self._qparams = student, qparams
        self._calibration = calibration
        first = self.layers[0]
        self._weight, self._integer = first.weight, any(s.compute == "integer" for s in layers)
        self.settings = self._codebook_settings() if codebooks else {}
        if self._weight in qparams.thresholds:
            self.settings |= self._width_settings()
        self._codebooks: dict[int, Codebook] = {}
        self._thresholds: dict[int, FloatArray] = {}

    def _codebook_settings(self) -> dict[Setting, int]:
        first = self.layers[0]
        return {
            Setting(codebook=count): self._bytes(codebook=count)
            for count in COUNTS
            if not codebook_refusal(first.parameters, count, integer=self._integer, rows=first.rows)
        }

    def _width_settings(self) -> dict[Setting, int]:
        """The plan's bit width, and the smaller ones that save bytes over each wider one."""
        widest = self.layers[0].num_bits
        found = {widest: self._bytes(num_bits=widest)}
        for width in sorted(WIDTHS, reverse=True):
            size = self._bytes(num_bits=width)
            if width < widest and size < min(found.values()):
                found[width] = size
        return {Setting(weight_bits=width): found[width] for width in sorted(found)}

    def _bytes(self, **form: int) -> int:
        return weight_bytes(replace(self.layers[0], **form), integer=self._integer)  # type: ignore[arg-type]

    @property
    def float_size(self) -> int:
        """Bytes of the float weights."""
        return 4 * self.layers[0].parameters

    def fit(self) -> None:
        """Fit the codebooks and thresholds of all settings."""
        spec = self.layers[0]
        weight = self._qparams.weights[self._weight]
        for width in [s.weight_bits for s in self.settings if s.weight_bits is not None]:
            self._thresholds[width] = (
                self._qparams.thresholds[self._weight]
                if width == spec.num_bits
                else weight_threshold(weight, self._calibration, width, spec.axis)
            )
        largest = spec.centroid_max if self._integer else None
        counts = [s.codebook for s in self.settings if s.codebook is not None]
        self._codebooks = fit_codebooks(weight, counts, spec.axis, largest)

    def forget(self) -> None:
        """Release the memory of codebooks and thresholds."""
        self._codebooks.clear()
        self._thresholds.clear()

    def parameters(self, setting: Setting) -> Arrays:
        """The weight and biases of a setting, by the student's input name."""
        layers = self.layers
        qparams = self._qparams
        if setting == FLOAT:
            fake = qparams.weights[self._weight]
        else:
            layers, qparams = self._quantized(setting)
            plan = replace(self._student.plan, layers={spec.name: spec for spec in layers})
            scales = replace(self._student, plan=plan).weight_scales(qparams)
            fake = fake_weight(layers[0], qparams, scales[self._weight])
        biases = {
            bias_name(spec): corrected_bias(spec, qparams, fake)
            for spec in layers
            if needs_bias(spec)
        }
        return {self._weight: fake, **biases}

    def _quantized(self, setting: Setting) -> tuple[tuple[LayerSpec, ...], QParams]:
        """The layers with a setting, and their quantization parameters."""
        form = {"codebook": setting.codebook}
        if setting.codebook is not None:
            book = self._codebooks[setting.codebook]
            qparams = self._qparams.with_codebooks({self._weight: book})
        else:
            assert setting.weight_bits is not None
            form["num_bits"] = setting.weight_bits
            threshold = self._thresholds[setting.weight_bits]
            qparams = self._qparams.with_thresholds({self._weight: threshold})
        return tuple(replace(spec, **form) for spec in self.layers), qparams  # type: ignore[arg-type]


class Suffix:
    """The part of a model behind one weight; the weight and its layers' biases are inputs.

    Args:
        model: the float model with the compared tensors as its outputs; it isn't changed.
        layers: the layers that read the weight.

    Attributes:
        parameters: names of the inputs for the weight and biases.
        inputs: names of the model's tensors that the other inputs take.
        outputs: names of the compared tensors that the weight can reach.
        nbytes: bytes of the initializers.
    """

    def __init__(self, model: ir.Model, layers: Sequence[LayerSpec]) -> None:
        freed = model.clone(deep_copy=False)
        for spec in layers:
            free_parameters(freed.graph, spec)
        biases = [bias_name(spec) for spec in layers if needs_bias(spec)]
        self.parameters = (layers[0].weight, *biases)
        self._model = split(freed, self.parameters).suffix
        graph = self._model.graph
        _drop_passed_through(graph)
        names = [str(value.name) for value in graph.inputs]
        self.inputs = tuple(name for name in names if name not in self.parameters)
        self.outputs = tuple(str(value.name) for value in graph.outputs)
        constants = [value.const_value for value in graph.initializers.values()]
        self.nbytes = sum(each.nbytes for each in constants if each is not None)
        self._session: SessionPool | None = None

    def open(self) -> None:
        """Open the session; several threads may run it at once."""
        if self.outputs:
            self._session = SessionPool(self._model, workers=1, merge=False)

    def close(self) -> None:
        """Close the session and release its memory."""
        self._session = None

    def run(self, parameters: Feeds, tensors: Feeds) -> Arrays:
        """The outputs by name; outputs that the weight can't reach are left out.

        Args:
            parameters: the weight and biases.
            tensors: the model's tensors on one batch, `inputs` among them.
        """
        if self._session is None:
            return {}
        return self._session.run({**{name: tensors[name] for name in self.inputs}, **parameters})


def _drop_passed_through(graph: ir.Graph) -> None:
    """Remove outputs that are computed before the cut, and inputs that only they read."""
    for value in [each for each in graph.outputs if each.producer() is None]:
        graph.outputs.remove(value)
        if not value.uses():
            graph.inputs.remove(value)


Floats = NDArray[np.float64]

SMALLEST_SQUARES = 1e-12
"""A tensor that is zero throughout is safe to divide by."""


class EffectMeter:
    """The effect of a candidate on the outputs of one batch, as sums over samples.

    A single compared tensor of shape (samples, classes >= 2), maybe with trailing dimensions of 1,
    is a classifier's. The effect is then the mean over the samples of

        KL(p_T || p_S)   and   p_T(c_T) - p_T(c_S).

    Otherwise it is the mean over the compared tensors of sum (y_S - y_T)^2 / sum y_T^2.

    Args:
        names: of the compared tensors.
        outputs: the teacher's, on one batch.
        count: samples in that batch.
        decides: whether the only tensor may hold classes.
    """

    def __init__(
        self, names: Sequence[str], outputs: Feeds, count: int, *, decides: bool = True
    ) -> None:
        self._names = tuple(names)
        first = outputs[self._names[0]]
        decides = decides and len(self._names) == 1 and holds_decisions(first.shape, count)
        self.measure: Measure = "kl" if decides else "error"
        self._probabilities = decides and look_like_probabilities(first.reshape(count, -1))

    def sums(self, teacher: Feeds, student: Feeds) -> Floats:
        """The sums of one batch, float64.

        Args:
            teacher: its outputs by name.
            student: the candidate's; missing ones equal the teacher's.

        Returns:
            sums over the samples of (KL, drop, drop^2), or of the squared error and the teacher's
            squares of each tensor.
        """
        if self.measure == "kl":
            return self._decision_sums(teacher, student)
        pairs = [(teacher[name], student.get(name, teacher[name])) for name in self._names]
        errors = [np.square(np.subtract(s, t, dtype=np.float64)).sum() for t, s in pairs]
        squares = [np.square(t, dtype=np.float64).sum() for t, _ in pairs]
        return np.array([*errors, *squares])

    def _decision_sums(self, teacher: Feeds, student: Feeds) -> Floats:
        name = self._names[0]
        if name not in student:
            return np.zeros(3)
        expected, found = (each[name].reshape(len(each[name]), -1) for each in (teacher, student))
        logs = log_probabilities(expected, self._probabilities)
        divergence = kl_divergence(logs, log_probabilities(found, self._probabilities))
        drop = confidence_drop(logs, expected.argmax(axis=1), found.argmax(axis=1))
        return np.array([divergence.sum(), drop.sum(), np.square(drop).sum()])

    def effect(self, sums: Floats, samples: int, size: int) -> Effect:
        """The effect of a setting, from the sums over all batches.

        Args:
            sums: added up.
            samples: the number of samples.
            size: bytes that the weights take.
        """
        if self.measure == "error":
            errors, squares = np.split(sums, 2)
            return Effect(size, float((errors / np.maximum(squares, SMALLEST_SQUARES)).mean()))
        divergence, drop, squared = (float(each) / samples for each in sums)
        spread = math.sqrt(max(squared - drop * drop, 0.0) / samples)
        return Effect(size, max(divergence, 0.0), 100 * drop, 100 * spread)
