"""plan -> calibrate -> student, which forms of a model and searches repeat."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import onnx_ir as ir

from onnxq.calibrate.calibrator import TensorStatistics, calibrate, infinite_tensors
from onnxq.forms.bias_correction import missing_statistics
from onnxq.forms.equalize import Pair
from onnxq.forms.variant import Variant, start_variant
from onnxq.options.recipe import Recipe
from onnxq.plan import Plan, make_plan
from onnxq.progress import Progress, Silent
from onnxq.runtime.clock import CALIBRATION, CORRECTION, Clock
from onnxq.runtime.costs import stage
from onnxq.runtime.dataset import Samples
from onnxq.student.build import build_student, initial_qparams
from onnxq.train.teacher import Targets

FEW = 64
"""Samples that means settle on, and the ranges of a form that is only compared."""

NOTHING_KNOWN: Mapping[str, TensorStatistics] = MappingProxyType({})


@dataclass(frozen=True)
class Quantization:
    """plan -> calibrate -> student, for any form of a model under any recipe.

    Attributes:
        train: the training slice, on which tensors are calibrated.
        targets: all samples, with the original's outputs.
        batch_size: samples in one run.
        smaller: whether layers that are no smaller as integers stay float.
        progress: told how far each calibration is.
        clock: of the run.
    """

    train: Samples
    targets: Targets
    batch_size: int
    smaller: bool = False
    progress: Progress = field(default_factory=Silent)
    clock: Clock = field(default_factory=Clock)

    def __call__(
        self,
        name: str,
        model: ir.Model,
        recipe: Recipe,
        known: Mapping[str, TensorStatistics] = NOTHING_KNOWN,
        fallback: frozenset[str] = frozenset(),
        *,
        every_layer: bool = False,
        brief: bool = False,
    ) -> Variant:
        """The student of a form; arguments as of `Quantize`."""
        infinite, smaller = infinite_tensors(known), self.smaller and not every_layer
        plan = make_plan(model, recipe, infinite, fallback, smaller=smaller)
        statistics = {**known, **self._measure(name, model, plan, recipe, known, brief=brief)}
        if infinite_tensors(statistics) != infinite:
            # Tensors without a range stay float, and so may their neighbours.
            options = {"every_layer": every_layer, "brief": brief}
            return self(name, model, recipe, statistics, fallback, **options)
        student = build_student(model, plan)
        qparams = initial_qparams(model, plan, statistics, recipe.calibration)
        variant = start_variant(
            name, model, recipe, student, statistics, qparams, self.targets, fallback
        )
        return self._scored(variant, brief=brief)

    def calibrate(
        self, name: str, model: ir.Model, recipe: Recipe, pairs: Sequence[Pair]
    ) -> dict[str, TensorStatistics]:
        """Statistics of the tensors that a recipe quantizes; arguments as of `Quantize`."""
        plan = make_plan(model, recipe, smaller=self.smaller)
        between = {name for pair in pairs for name in pair.between}
        channels = {pair.tensor for pair in pairs} | between & plan.tensors.keys()
        return self._measure(name, model, plan, recipe, channels=channels)

    @stage("calibrate")
    def _measure(
        self,
        name: str,
        model: ir.Model,
        plan: Plan,
        recipe: Recipe,
        known: Mapping[str, TensorStatistics] = NOTHING_KNOWN,
        channels: Collection[str] = (),
        *,
        brief: bool = False,
    ) -> dict[str, TensorStatistics]:
        """The statistics that a plan needs, as far as they are not known."""
        tensors, means = missing_statistics(model, plan, recipe, known)
        if not (tensors or channels or means):
            return {}
        few = brief or not (tensors or channels)
        samples = self.train.take(FEW, recipe.seed) if few else self.train
        self.progress.start(f"calibrate, {name}", len(samples))
        at = self.progress.at
        with self.clock.timed(CALIBRATION):
            found = calibrate(
                model, tensors, samples, self.batch_size, channels, means, on_batch=at
            )
        self.progress.finish()
        return found

    @stage("bias correction, scores")
    def _scored(self, variant: Variant, *, brief: bool) -> Variant:
        """The variant with corrected biases, where they are better, and its score."""
        if self.clock.is_over("bias correction"):
            return variant.scored(brief=brief)
        with self.clock.timed(CORRECTION):
            return variant.with_corrected_biases(trial=not brief).scored(brief=brief)

    def has_time(self, *, measured: bool = False) -> bool:
        """Whether there is time to quantize another form; a note says where there was none.

        Args:
            measured: whether the form's tensors are calibrated already: no pass is needed then.
        """
        if measured:
            return self.clock.has_time((), "further tensors in float")
        return self.clock.has_time((CALIBRATION, CORRECTION), "further forms of the model")
