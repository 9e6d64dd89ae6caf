"""The evaluator of a search: builds whole models, trains them briefly and measures them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import tee
from typing import Any

import numpy as np

from onnxq.forms.variant import Quantize, Variant, requantize
from onnxq.graph.facts import values_by_name
from onnxq.graph.meanings import decides
from onnxq.options.recipe import Recipe
from onnxq.runtime.dataset import fed_to
from onnxq.runtime.session import SessionPool, expose
from onnxq.search.effects import EffectMeter
from onnxq.search.table import Effect, Row, Setting, SweepTable
from onnxq.student.student import bake
from onnxq.train.checkpoint import Checkpoint
from onnxq.train.objective import target_name
from onnxq.train.teacher import MICRO_BATCH

PART = "search"
"""The file's name in the checkpoint's folder."""

_SWEEP, _TRIALS = "sweep", "trials"


class TrialCache:
    """The sweep table and the trials of one search, cached: equal settings are evaluated once.

    Args:
        checkpoint: of the run; None keeps nothing on disk.
        resume: whether results of an earlier run are used.
    """

    def __init__(self, checkpoint: Checkpoint | None, *, resume: bool) -> None:
        self._checkpoint = checkpoint.part(PART) if checkpoint is not None else None
        arrays = self._checkpoint.load() if self._checkpoint is not None and resume else None
        self._kept: dict[str, Any] = {
            name: json.loads(str(array)) for name, array in (arrays or {}).items()
        }

    def sweep(self, measure: Callable[[], SweepTable]) -> SweepTable:
        """The cached table, or a new one."""
        if _SWEEP not in self._kept:
            self._keep(_SWEEP, measure().to_fields())
        return SweepTable.from_fields(self._kept[_SWEEP])

    def trial(self, settings: Sequence[Setting], measure: Callable[[], Effect]) -> Effect:
        """The cached effect of these settings, or a new one."""
        name = " ".join(setting.label for setting in settings)
        trials = self._kept.get(_TRIALS, {})
        if name not in trials:
            trials = {**trials, name: dataclasses.asdict(measure())}
            self._keep(_TRIALS, trials)
        return Effect(**trials[name])

    def _keep(self, name: str, fields: Any) -> None:
        self._kept[name] = fields
        if self._checkpoint is not None:
            arrays = {key: np.array(json.dumps(value)) for key, value in self._kept.items()}
            self._checkpoint.save(arrays)


class ModelEvaluator:
    """Builds the student of an allocation and measures it.

    Args:
        recipe: the options; settings of an allocation override those of its layers.
        rows: of the layers that are allocated.
        quantize: quantizes a form of the model: plan, calibrate, student.
        base: the calibrated form of the model.
        learn: trains a variant within the budget of a trial.
        file_bytes: the file size of a variant under a recipe.
        cache: keeps the results of trials.
        has_time: whether there is time for another trial.
    """

    def __init__(
        self,
        recipe: Recipe,
        rows: Sequence[Row],
        quantize: Quantize,
        base: Variant,
        learn: Callable[[Variant], Variant],
        file_bytes: Callable[[Variant, Recipe], int],
        cache: TrialCache,
        has_time: Callable[[], bool],
    ) -> None:
        self._recipe, self._rows, self._file_bytes = recipe, rows, file_bytes
        self._quantize, self._base = quantize, base
        self._learn, self._cache, self._has_time = learn, cache, has_time

    def recipe(self, settings: Sequence[Setting]) -> Recipe:
        """The options with these settings as layer overrides, and nothing left to search."""
        overrides = tuple(
            setting.override(name)
            for row, setting in zip(self._rows, settings, strict=True)
            for name in row.layers
        )
        layers = (*self._recipe.layers, *overrides)
        return replace(self._recipe, codebook=None, max_drop=None, max_size=None, layers=layers)

    def build(self, settings: Sequence[Setting]) -> Variant:
        """The student with these settings; nothing is trained."""
        return requantize(self._base, self.recipe(settings), self._quantize)

    def trial(self, settings: Sequence[Setting]) -> Effect:
        """The effect of these settings after brief training; its size is that of the file."""
        return self._cache.trial(settings, lambda: self._trial(settings))

    def _trial(self, settings: Sequence[Setting]) -> Effect:
        variant = self._learn(self.build(settings))
        return replace(whole_effect(variant), size=self.size(variant, settings))

    def file_size(self, settings: Sequence[Setting]) -> int:
        """Bytes of the file with these settings; nothing is trained."""
        return self.size(self.build(settings), settings)

    def has_time(self) -> bool:
        """Whether there is time for another trial."""
        return self._has_time()

    def size(self, variant: Variant, settings: Sequence[Setting]) -> int:
        """Bytes of the file of a variant from `build`."""
        return self._file_bytes(variant, self.recipe(settings))


def whole_effect(variant: Variant) -> Effect:
    """The effect of a whole student on the held-out samples; its size is left at 0."""
    samples, names = variant.held_out_outputs, list(variant.objective.weights)
    student = expose(bake(variant.student, variant.qparams), names)
    mine, others = tee(samples.batches(MICRO_BATCH))
    pool = SessionPool(student, names, merge=False)
    found = pool.map(fed_to(student, feeds) for feeds in mine)
    meter, sums = None, []
    decisive = decides(values_by_name(variant.model.graph)[names[0]], variant.recipe.task)
    for feeds, student_outputs in zip(others, found, strict=True):
        teacher = {name: feeds[target_name(name)] for name in names}
        count = samples.batch or min(MICRO_BATCH, len(samples))
        meter = meter or EffectMeter(names, teacher, count, decides=decisive)
        sums.append(meter.sums(teacher, student_outputs))
    assert meter is not None
    return meter.effect(np.sum(sums, axis=0), len(samples) * (samples.batch or 1), 0)
