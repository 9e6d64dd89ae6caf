"""A variant: one form of a model, quantized; held-out samples decide which one is best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import onnx_ir as ir

from onnxq.calibrate.calibrator import TensorStatistics
from onnxq.errors import DataError
from onnxq.forms.bias_correction import correct_biases
from onnxq.forms.equalize import EqualForm, Pair, equalize, find_pairs
from onnxq.numerics.quantizers import Range
from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.options.table import OFF
from onnxq.plan import Plan, make_plan
from onnxq.runtime.costs import stage
from onnxq.runtime.dataset import Joined
from onnxq.student.build import full_ranges, with_shared_biases
from onnxq.student.qparams import QParams
from onnxq.student.student import Student, bake
from onnxq.train.held_out import HeldOut, Learned
from onnxq.train.objective import OutputMatching
from onnxq.train.teacher import Targets

PLAIN = "plain"
"""The name of the form that is the model itself."""

COMPARED = 32
"""Held-out samples that two candidates are compared on: both see the same ones."""


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
        held_out_outputs: the held-out samples, joined with the original's outputs.
        objective: the loss that matches the outputs.
        score: the held-out relative RMSE of the quantization parameters; NaN before `scored`.
        fallback: names of tensors that are kept in float by the mixed-precision fallback.
        corrected: whether biases are corrected.
        tuned: whether the quantization parameters are chosen or trained, beyond calibration.
        bias_cost: where biases are centroids, the score with each channel's own bias and with
            shared ones.
    """

    name: str
    model: ir.Model
    recipe: Recipe
    student: Student
    statistics: Mapping[str, TensorStatistics]
    qparams: QParams
    held_out_outputs: Joined
    objective: OutputMatching
    score: float = math.nan
    fallback: frozenset[str] = frozenset()
    bias_cost: tuple[float, float] | None = None
    corrected: bool = False
    tuned: bool = False

    def score_of(self, qparams: QParams, *, brief: bool = False) -> float:
        """The score of quantization parameters on the held-out samples, or on a few of them."""
        model = self.objective.attach(bake(self.student, qparams))
        samples, indices = self.held_out_outputs, None
        if brief and len(samples) > COMPARED:
            indices = np.linspace(0, len(samples) - 1, COMPARED).astype(np.int64)
        return HeldOut(model, samples, self.objective).score({}, indices)

    def held_out(self) -> HeldOut:
        """Evaluates the student, whose parameters are fed, on the held-out samples."""
        model = self.objective.attach(self.student.model)
        return HeldOut(model, self.held_out_outputs, self.objective)

    def scored(self, *, brief: bool = False) -> Variant:
        """The same with the score of its quantization parameters."""
        return replace(self, score=self.score_of(self.qparams, brief=brief))

    def with_corrected_biases(self, *, trial: bool = True) -> Variant:
        """The variant with corrected biases, where allowed and better on a few held-out samples.

        Where it differs from this one, it has no score yet.

        Args:
            trial: False takes them for better, which they nearly always are.
        """
        recipe = self.recipe
        if not recipe.bias_correction or recipe.bias_centroids is not None:
            return self
        plan = self.student.plan
        qparams = correct_biases(self.model, plan, self.qparams, self.statistics)
        if qparams.means.keys() == self.qparams.means.keys():
            return self
        other = replace(self, qparams=qparams, score=math.nan, corrected=True)
        if trial and not other.scored(brief=True).score < self.scored(brief=True).score:
            return self
        return other

    def full_ranges(self) -> dict[str, Range]:
        """The range of all values that calibration saw, by tensor of the plan."""
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

    def with_learned(self, learned: Learned) -> Variant:
        """The same form with the trained quantization parameters, its biases corrected anew."""
        variant = replace(self, qparams=learned.qparams)
        if not learned.improved:
            return variant
        return replace(variant, tuned=True).with_corrected_biases().scored()


class Quantize(Protocol):
    """Quantizes one form of a model: plan, calibrate, student."""

    def __call__(
        self,
        name: str,
        model: ir.Model,
        recipe: Recipe,
        known: Mapping[str, TensorStatistics] = ...,
        fallback: frozenset[str] = ...,
        *,
        every_layer: bool = ...,
        brief: bool = ...,
    ) -> Variant:
        """The variant of a form.

        Args:
            name: of the form.
            model: the float model in that form.
            recipe: the options.
            known: statistics of tensors that are calibrated already.
            fallback: names of tensors that are kept in float by the mixed-precision fallback.
            every_layer: whether layers that are no smaller as integers are quantized too.
            brief: whether few samples are enough, to calibrate and to score on.
        """

    def has_time(self, *, measured: bool = False) -> bool:
        """Whether there is time for another form, or for one whose tensors are measured."""

    def calibrate(
        self, name: str, model: ir.Model, recipe: Recipe, pairs: Sequence[Pair]
    ) -> dict[str, TensorStatistics]:
        """Statistics by name of the tensors that a recipe quantizes, over the training slice.

        Args:
            name: of the form.
            model: the float model in that form.
            recipe: the options.
            pairs: pairs of layers, for whose equalization statistics of channels are wanted.
        """


def requantize(variant: Variant, recipe: Recipe, quantize: Quantize) -> Variant:
    """The same form under another recipe; calibrated tensors are not calibrated again."""
    return quantize(variant.name, variant.model, recipe, variant.statistics, variant.fallback)


def start_variant(
    name: str,
    model: ir.Model,
    recipe: Recipe,
    student: Student,
    statistics: Mapping[str, TensorStatistics],
    qparams: QParams,
    targets: Targets,
    fallback: frozenset[str],
) -> Variant:
    """The variant of a student, its biases shared where the recipe says so; it has no score yet.

    Args:
        name: of the form.
        model: the float model in that form.
        recipe: the options.
        student: the student of the form.
        statistics: from calibration.
        qparams: the quantization parameters to start from.
        targets: the samples, with the original's outputs.
        fallback: names of tensors that are kept in float by the mixed-precision fallback.
    """
    variant = Variant(
        name, model, recipe, student, statistics, qparams, targets.held_out, targets.objective,
        fallback=fallback,
    )  # fmt: skip
    if recipe.bias_centroids is None:
        return variant
    shared = with_shared_biases(qparams, student.plan, recipe.bias_centroids)
    cost = variant.score_of(qparams), variant.score_of(shared)
    return replace(variant, qparams=shared, bias_cost=cost)


SAFE, REPLACE = "equalized", "equalized, ReLU6 replaced by ReLU"


@stage("forms")
def choose_form(model: ir.Model, recipe: Recipe, quantize: Quantize) -> Variant:
    """The plain form, or an equalized one where its held-out score is lower.

    Forms are compared with integer weights; codebooks are fitted for the best form only.

    Args:
        model: the normalised float model.
        recipe: the options.
        quantize: quantizes a form: plan, calibrate, student.

    Raises:
        DataError: the difference to the original's outputs is not finite on these samples.
    """
    pairs = find_pairs(model) if recipe.equalize and _gains(make_plan(model, recipe)) else []
    if not pairs:
        best = quantize(PLAIN, model, recipe)
    else:
        compared = _without_codebooks(recipe)
        plain = quantize.calibrate(PLAIN, model, compared, pairs)
        largest = _channel_maxima(plain)
        forms = {PLAIN: EqualForm(model), SAFE: equalize(model, largest, "safe")}
        if any(pair.clip is not None for pair in pairs):
            forms[REPLACE] = equalize(model, largest, "replace")
        known = {name: form.derived(plain) for name, form in forms.items()}
        scores = dict[str, float]()
        for name, form in forms.items():
            if scores and not quantize.has_time():
                break
            scores[name] = quantize(name, form.model, compared, known[name], brief=True).score
        name = min(scores, key=scores.__getitem__)
        best = quantize(name, forms[name].model, recipe, known[name])
    if not math.isfinite(best.score):
        raise DataError(
            "the samples are too large for the model: the difference to its outputs is not a "
            "finite number; give samples of the range that the model was trained on"
        )
    return best


def _channel_maxima(found: Mapping[str, TensorStatistics]) -> dict[str, np.ndarray]:
    result = {}
    for name, statistics in found.items():
        low, high = statistics.channel_minimum, statistics.channel_maximum
        if low is not None and high is not None:
            result[name] = np.maximum(high, -low)
    return result


def _without_codebooks(recipe: Recipe) -> Recipe:
    """The recipe with integer weights in place of codebooks."""
    counts = (recipe.codebook, *(layer.codebook for layer in recipe.layers))
    if not any(isinstance(count, int) for count in counts):
        return recipe
    return replace(recipe, layers=(*recipe.layers, LayerOverride("*", codebook=OFF)))


def _gains(plan: Plan) -> bool:
    """Whether equal channel ranges can help: not with float activations and per-channel scales."""
    layers = plan.layers.values()
    return bool(plan.tensors) or any(layer.axis is None for layer in layers)
