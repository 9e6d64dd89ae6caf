"""The forms of a model, each quantized; the held-out samples decide which one is best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxq.calibrate.calibrator import TensorStatistics, calibrate
from onnxq.errors import DataError
from onnxq.forms.bias_correction import correct_biases
from onnxq.forms.equalize import equalize, find_pairs
from onnxq.forms.sensitivity import Sensitivity, error_limit
from onnxq.numerics.quantizers import Range
from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.options.table import OFF
from onnxq.plan import Plan, make_plan
from onnxq.progress import Progress, Silent
from onnxq.runtime.dataset import Joined, Samples
from onnxq.student.build import build_student, full_ranges, initial_qparams, with_shared_biases
from onnxq.student.qparams import QParams
from onnxq.student.student import Student
from onnxq.train.held_out import HeldOut
from onnxq.train.objective import OutputMatching

CORRECTION_SAMPLES = 128
"""Samples whose mean inputs correct the biases: means settle early."""

FALLBACK_SHARES = (0.7, 0.3, 0.1, 0.03)
"""Shares of the error limit that quantized activations may cause, tried in turn."""

WORTHLESS_GAIN = 1.2
"""The fallback with the fewest float tensors is taken whose score is within this ratio of the
best."""

PLAIN, SAFE, REPLACE = "plain", "equalized", "equalized, ReLU6 replaced by ReLU"


@dataclass(frozen=True)
class Variant:
    """One form of the model, its student, and the quantization parameters to start from.

    Attributes:
        name: of the form.
        model: the float model in that form, with the original's outputs.
        recipe: the options.
        student: the student.
        statistics: from calibration.
        qparams: the quantization parameters.
        held_out: evaluates the student on the held-out samples.
        held_out_outputs: the held-out samples, joined with the original's outputs.
        objective: the loss that matches the outputs.
        score: the held-out relative RMSE of the quantization parameters.
        fallback: names of tensors that are kept in float by the mixed-precision fallback.
        corrected: whether biases are corrected.
        bias_cost: where biases are centroids, the score with each channel's own bias and with
            shared ones.
    """

    name: str
    model: ir.Model
    recipe: Recipe
    student: Student
    statistics: Mapping[str, TensorStatistics]
    qparams: QParams
    held_out: HeldOut
    held_out_outputs: Joined
    objective: OutputMatching
    score: float
    fallback: frozenset[str] = frozenset()
    bias_cost: tuple[float, float] | None = None
    corrected: bool = False

    def score_of(self, qparams: QParams) -> float:
        """The held-out score of other quantization parameters."""
        return self.held_out.score(self.student.feeds(qparams))

    def full_ranges(self) -> dict[str, Range]:
        """The range of all values that the calibration saw, by tensor of the plan."""
        return full_ranges(self.student.plan, self.statistics)

    def elements(self) -> dict[str, int]:
        """Elements of each tensor in one sample, where known."""
        graph = self.model.graph
        values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
        dims = {str(v.name): tuple(v.shape)[1:] for v in values if v.shape is not None}
        return {
            name: math.prod(d for d in sizes if isinstance(d, int))
            for name, sizes in dims.items()
            if all(isinstance(d, int) for d in sizes)
        }


class Variants:
    """Makes variants of one model on the same samples.

    Args:
        recipe: the options.
        train: the samples to calibrate on.
        held_out_outputs: the held-out samples, joined with the original's outputs.
        objective: the loss that matches the outputs.
        batch_size: samples in one run.
        progress: told how far each calibration is.
        smaller: whether layers that are no smaller as integers stay float.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: Samples,
        held_out_outputs: Joined,
        objective: OutputMatching,
        batch_size: int,
        progress: Progress | None = None,
        *,
        smaller: bool = False,
    ) -> None:
        self._progress = progress or Silent()
        self._smaller = smaller
        self._recipe, self._train, self._batch_size = recipe, train, batch_size
        self._held_out_outputs, self._objective = held_out_outputs, objective

    def make(self, name: str, model: ir.Model) -> Variant:
        """The variant of one form of the model: planned, calibrated and with its student."""
        return self._make(name, model, self._recipe, {}, frozenset())

    def remake(self, variant: Variant, recipe: Recipe) -> Variant:
        """The same form under another recipe; calibrated tensors are not calibrated again."""
        return self._make(variant.name, variant.model, recipe, variant.statistics, variant.fallback)

    def _make(
        self,
        name: str,
        model: ir.Model,
        recipe: Recipe,
        known: Mapping[str, TensorStatistics],
        fallback: frozenset[str],
    ) -> Variant:
        infinite = _infinite(known)
        plan = make_plan(model, recipe, infinite, fallback, smaller=self._smaller)
        known = self._statistics(name, model, plan, known)
        if _infinite(known) != infinite:
            plan = make_plan(model, recipe, _infinite(known), fallback, smaller=self._smaller)
            known = self._statistics(name, model, plan, known)
        return self.corrected(self._rewrite(name, model, recipe, plan, known, fallback))

    def _statistics(
        self, name: str, model: ir.Model, plan: Plan, known: Mapping[str, TensorStatistics]
    ) -> dict[str, TensorStatistics]:
        """The known statistics and those of the plan's other tensors."""
        missing = [tensor for tensor in plan.tensors if tensor not in known]
        if not missing:
            return dict(known)
        return {**known, **self._calibrate(f"calibrate, {name}", model, missing, [])}

    def fallback(self, variant: Variant) -> Variant:
        """The variant after mixed-precision fallback.

        Where the outputs are further than `error_limit` from the float ones, the tensors that cost
        most (see `sensitivity`) are kept in float, as few as bring the error below the limit.
        """
        limit = error_limit(variant.model)
        plan = variant.student.plan
        if not variant.recipe.fallback or variant.score <= limit or not plan.tensors:
            return variant
        sensitivity = Sensitivity(
            variant.model, plan, variant.qparams, self._objective, self._held_out_outputs
        )
        self._progress.start("find the tensors that need more than 8 bits", len(plan.tensors))
        sensitivity.order(self._progress.at)
        self._progress.finish()
        found, tried = [variant], frozenset[str]()
        for share in FALLBACK_SHARES:
            names = sensitivity.to_fall_back(share * limit)
            if names != tried:
                tried = names
                found.append(self._with_float(variant, names))
            if found[-1].score <= limit:
                break
        # Weights alone may cost more than the limit: what gains little is not worth floats.
        enough = max(limit, WORTHLESS_GAIN * min(each.score for each in found))
        return next(each for each in found if each.score <= enough)

    def _with_float(self, variant: Variant, names: frozenset[str]) -> Variant:
        return self._make(variant.name, variant.model, variant.recipe, variant.statistics, names)

    def corrected(self, variant: Variant) -> Variant:
        """The variant with corrected biases, where allowed and better on held-out samples."""
        if not variant.recipe.bias_correction or variant.recipe.bias_centroids is not None:
            return variant
        samples = self._train.take(CORRECTION_SAMPLES, variant.recipe.seed)
        qparams = correct_biases(variant.student, variant.qparams, samples, self._batch_size)
        score = variant.score_of(qparams)
        if score >= variant.score:
            return variant
        return replace(variant, qparams=qparams, score=score, corrected=True)

    def _rewrite(
        self,
        name: str,
        model: ir.Model,
        recipe: Recipe,
        plan: Plan,
        statistics: Mapping[str, TensorStatistics],
        fallback: frozenset[str],
    ) -> Variant:
        student = build_student(model, plan)
        qparams = initial_qparams(model, plan, statistics, recipe.calibration)
        loss_model = self._objective.attach(student.model)
        held_out = HeldOut(loss_model, self._held_out_outputs, self._objective)
        own_biases = None
        if recipe.bias_centroids is not None:
            own_biases = held_out.score(student.feeds(qparams))
            qparams = with_shared_biases(qparams, plan, recipe.bias_centroids)
        score = held_out.score(student.feeds(qparams))
        return Variant(
            name=name,
            model=model,
            recipe=recipe,
            student=student,
            statistics=statistics,
            qparams=qparams,
            held_out=held_out,
            held_out_outputs=self._held_out_outputs,
            objective=self._objective,
            score=score,
            fallback=fallback,
            bias_cost=None if own_biases is None else (own_biases, score),
        )

    def choose(self, model: ir.Model) -> Variant:
        """The best of the plain and the equalized forms, after mixed-precision fallback.

        Raises:
            DataError: the difference to the original's outputs is not finite on these samples.
        """
        best = self._best_form(model)
        if not math.isfinite(best.score):
            raise DataError(
                "the samples are too large for the model: the difference to its outputs is not a "
                "finite number; give samples of the range that the model was trained on"
            )
        return self.fallback(best)

    def _best_form(self, model: ir.Model) -> Variant:
        """The plain form, or an equalized one where its held-out score is lower.

        Forms are compared with integer weights; codebooks are fitted for the best form only.
        """
        recipe = self._recipe
        wanted = recipe.equalize and _gains(make_plan(model, recipe))
        pairs = find_pairs(model) if wanted else []
        if not pairs:
            return self.make(PLAIN, model)
        recipe = _without_codebooks(recipe)
        best = self._make(PLAIN, model, recipe, {}, frozenset())
        largest = self._channel_maxima(model, list(dict.fromkeys(p.tensor for p in pairs)))
        candidates = {SAFE: equalize(model, largest, "safe")}
        if any(pair.clip is not None for pair in pairs):
            candidates[REPLACE] = equalize(model, largest, "replace")
        for name, equalized in candidates.items():
            variant = self._make(name, equalized, recipe, {}, frozenset())
            if variant.score < best.score:
                best = variant
        return best if recipe == self._recipe else self.remake(best, self._recipe)

    def _calibrate(
        self, stage: str, model: ir.Model, tensors: list[str], channels: list[str]
    ) -> dict[str, TensorStatistics]:
        self._progress.start(stage, len(self._train))
        found = calibrate(
            model,
            tensors,
            self._train,
            self._batch_size,
            channels,
            on_batch=self._progress.at,
        )
        self._progress.finish()
        return found

    def _channel_maxima(self, model: ir.Model, tensors: list[str]) -> Mapping[str, np.ndarray]:
        found = self._calibrate("channel ranges", model, [], tensors)
        result = {}
        for name, statistics in found.items():
            low, high = statistics.channel_minimum, statistics.channel_maximum
            if low is not None and high is not None:
                result[name] = np.maximum(high, -low)
        return result


def _without_codebooks(recipe: Recipe) -> Recipe:
    """The recipe with integers in the place of codebooks."""
    counts = (recipe.codebook, *(layer.codebook for layer in recipe.layers))
    if not any(isinstance(count, int) for count in counts):
        return recipe
    return replace(recipe, layers=(*recipe.layers, LayerOverride("*", codebook=OFF)))


def _infinite(statistics: Mapping[str, TensorStatistics]) -> frozenset[str]:
    return frozenset(name for name, found in statistics.items() if not found.finite)


def _gains(plan: Plan) -> bool:
    """Whether equal channel ranges can help: not with float activations and per-channel scales."""
    layers = plan.layers.values()
    return bool(plan.tensors) or any(layer.axis is None for layer in layers)
