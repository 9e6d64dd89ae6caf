"""Whole models for the search: planned anew, learned a little, and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import tee

import numpy as np

from onnxq.learn.loss import target_name
from onnxq.learn.teacher import MICRO_BATCH
from onnxq.learn.variants import Variant, Variants
from onnxq.recipe import Recipe
from onnxq.rewrite.student import bake
from onnxq.search.effects import Judge
from onnxq.search.memo import Memo
from onnxq.search.table import Effect, Row, Setting
from onnxq.session import SessionPool, expose


class ModelWorkshop:
    """Builds the student of an allocation and measures it.

    Args:
        recipe: the options; the allocation's overrides come after those of its own.
        rows: of the layers that are allocated.
        variants: makes students.
        base: the form of the model, calibrated.
        learn: a variant with its numbers learned, in the budget of a trial.
        file_bytes: the size of the file of a variant under a recipe.
        memo: keeps what trials gave.
        has_time: whether the clock leaves time for a further trial.
    """

    def __init__(
        self,
        recipe: Recipe,
        rows: Sequence[Row],
        variants: Variants,
        base: Variant,
        learn: Callable[[Variant], Variant],
        file_bytes: Callable[[Variant, Recipe], int],
        memo: Memo,
        has_time: Callable[[], bool],
    ) -> None:
        self._recipe, self._rows, self._file_bytes = recipe, rows, file_bytes
        self._variants, self._base = variants, base
        self._learn, self._memo, self._has_time = learn, memo, has_time

    def recipe(self, settings: Sequence[Setting]) -> Recipe:
        """The options with these settings spelt out layer by layer: nothing to search for."""
        overrides = tuple(
            setting.override(name)
            for row, setting in zip(self._rows, settings, strict=True)
            for name in row.layers
        )
        layers = (*self._recipe.layers, *overrides)
        return replace(self._recipe, codebook=None, max_drop=None, max_size=None, layers=layers)

    def build(self, settings: Sequence[Setting]) -> Variant:
        """The student with these settings; nothing is learned."""
        return self._variants.remake(self._base, self.recipe(settings))

    def trial(self, settings: Sequence[Setting]) -> Effect:
        """The effect of these settings after a little learning, size in bytes of the file."""
        return self._memo.trial(settings, lambda: self._trial(settings))

    def _trial(self, settings: Sequence[Setting]) -> Effect:
        variant = self._learn(self.build(settings))
        return replace(whole_effect(variant), size=self.size(variant, settings))

    def file_size(self, settings: Sequence[Setting]) -> int:
        """Bytes of the file with these settings; nothing is learned."""
        return self.size(self.build(settings), settings)

    def has_time(self) -> bool:
        """Whether the clock leaves time for a further trial."""
        return self._has_time()

    def size(self, variant: Variant, settings: Sequence[Setting]) -> int:
        """Bytes of the file of a variant that `build` gave."""
        return self._file_bytes(variant, self.recipe(settings))


def whole_effect(variant: Variant) -> Effect:
    """How far a student's held-back outputs are from the teacher's; its size is left at 0."""
    outputs = variant.held_back_outputs
    names = outputs.logits
    student = expose(bake(variant.student, variant.quantizers), names)
    taken = {str(value.name) for value in student.graph.inputs}
    mine, others = tee(outputs.batches(np.arange(outputs.positions), MICRO_BATCH))
    found = SessionPool(student, names).map(
        {name: array for name, array in feeds.items() if name in taken} for feeds in mine
    )
    judge, sums, left = None, [], len(outputs.samples)
    for feeds, student_outputs in zip(others, found, strict=True):
        teacher = {name: feeds[target_name(name)] for name in names}
        count = outputs.samples.batch or min(MICRO_BATCH, left)
        judge = judge or Judge(names, teacher, count)
        sums.append(judge.sums(teacher, student_outputs))
        left -= count
    assert judge is not None
    return judge.effect(np.sum(sums, axis=0), len(outputs.samples), 0)
