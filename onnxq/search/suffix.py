"""The part of a model that one weight can reach, and the effect of a change on the outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.cut import split
from onnxq.numerics.distances import (
    confidence_drop,
    holds_decisions,
    kl_divergence,
    log_probabilities,
    look_like_probabilities,
)
from onnxq.plan.spec import LayerSpec
from onnxq.runtime.session import Arrays, Feeds, SessionPool
from onnxq.search.table import Effect, Measure
from onnxq.student.build import free_parameters
from onnxq.student.qparams import bias_name, needs_bias


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
            self._session = SessionPool(self._model, workers=1)

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
    """

    def __init__(self, names: Sequence[str], outputs: Feeds, count: int) -> None:
        self._names = tuple(names)
        first = outputs[self._names[0]]
        decides = len(self._names) == 1 and holds_decisions(first.shape, count)
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
