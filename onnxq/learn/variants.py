"""The same model in equal forms, each quantized; the held-back samples say which is best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxq.calibrate.calibrator import calibrate
from onnxq.calibrate.statistics import TensorStatistics
from onnxq.data.samples import Samples
from onnxq.learn.bias_correction import correct_biases
from onnxq.learn.held_back import HeldBack
from onnxq.learn.loss import attach_loss
from onnxq.learn.teacher import TeacherOutputs
from onnxq.plan import Plan, make_plan
from onnxq.recipe import Recipe
from onnxq.rewrite.equalize import equalize, find_pairs
from onnxq.rewrite.initial import initial_quantizers
from onnxq.rewrite.quantizers import Quantizers, student_feeds
from onnxq.rewrite.student import Student, build_student

CORRECTION_SAMPLES = 256
"""Samples whose mean inputs correct the biases: means settle early."""

PLAIN, SAFE, REPLACE = "none", "equalized", "equalized, ReLU6 replaced by ReLU"


@dataclass(frozen=True)
class Variant:
    """One form of the model with its student and the numbers to start from.

    Attributes:
        name: how the form was made.
        model: the float model in that form, with the original's outputs.
        student: the student.
        loss_model: the student with the loss attached.
        statistics: of the calibration.
        quantizers: the numbers.
        held_back: the judge.
        score: the held-back relative RMSE of the numbers.
        corrected: whether the biases of the numbers are corrected.
    """

    name: str
    model: ir.Model
    student: Student
    loss_model: ir.Model
    statistics: dict[str, TensorStatistics]
    quantizers: Quantizers
    held_back: HeldBack
    score: float
    corrected: bool = False

    def score_of(self, quantizers: Quantizers) -> float:
        """The held-back score of other numbers."""
        plan, sources = self.student.plan, self.student.sources
        return self.held_back.score(student_feeds(plan, quantizers, sources))

    def extremes(self) -> dict[str, tuple[float, float]]:
        """(minimum, maximum) of each tensor."""
        return {name: (s.minimum, s.maximum) for name, s in self.statistics.items()}


class Variants:
    """Makes variants of one model on the same samples.

    Args:
        recipe: the options.
        train: the samples to calibrate on.
        train_outputs: the original's outputs on them.
        held_back_outputs: the original's outputs on the held-back slice.
        batch_size: samples in one run.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: Samples,
        train_outputs: TeacherOutputs,
        held_back_outputs: TeacherOutputs,
        batch_size: int,
    ) -> None:
        self._recipe, self._train, self._batch_size = recipe, train, batch_size
        self._weights = train_outputs.weights()
        self._held_back_outputs = held_back_outputs

    def make(self, name: str, model: ir.Model) -> Variant:
        """Plan, calibrate and rewrite one form of the model."""
        plan = make_plan(model, self._recipe)
        statistics = calibrate(model, list(plan.tensors), self._train, self._batch_size)
        infinite = frozenset(n for n, s in statistics.items() if not s.finite)
        if infinite:
            plan = make_plan(model, self._recipe, infinite)
            statistics = {n: s for n, s in statistics.items() if n in plan.tensors}
        return self.corrected(self._rewrite(name, model, plan, statistics))

    def corrected(self, variant: Variant) -> Variant:
        """The variant with corrected biases, where the recipe and the held-back samples agree."""
        if not self._recipe.bias_correction:
            return variant
        samples = self._train.take(CORRECTION_SAMPLES, self._recipe.seed)
        numbers = correct_biases(variant.student, variant.quantizers, samples, self._batch_size)
        score = variant.score_of(numbers)
        if score >= variant.score:
            return variant
        return replace(variant, quantizers=numbers, score=score, corrected=True)

    def _rewrite(
        self, name: str, model: ir.Model, plan: Plan, statistics: dict[str, TensorStatistics]
    ) -> Variant:
        student = build_student(model, plan)
        loss_model = attach_loss(student.model, self._weights)
        quantizers = initial_quantizers(model, plan, statistics, self._recipe.calibration)
        held_back = HeldBack(loss_model, self._held_back_outputs)
        score = held_back.score(student_feeds(plan, quantizers, student.sources))
        return Variant(name, model, student, loss_model, statistics, quantizers, held_back, score)

    def choose(self, model: ir.Model) -> Variant:
        """The plain form, or an equalized one where its held-back score is lower."""
        best = self.make(PLAIN, model)
        if not self._recipe.equalize:
            return best
        pairs = find_pairs(model)
        if not pairs:
            return best
        largest = self._channel_maxima(model, list(dict.fromkeys(p.tensor for p in pairs)))
        candidates = {SAFE: equalize(model, largest, "safe")[0]}
        if any(pair.clip is not None for pair in pairs):
            candidates[REPLACE] = equalize(model, largest, "replace")[0]
        for name, equalized in candidates.items():
            variant = self.make(name, equalized)
            if variant.score < best.score:
                best = variant
        return best

    def _channel_maxima(self, model: ir.Model, tensors: list[str]) -> Mapping[str, np.ndarray]:
        found = calibrate(model, [], self._train, self._batch_size, tensors)
        result = {}
        for name, statistics in found.items():
            low, high = statistics.channel_minimum, statistics.channel_maximum
            if low is not None and high is not None:
                result[name] = np.maximum(high, -low)
        return result
