"""The search stage, after the choice of a form and before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from onnxq.errors import RecipeError
from onnxq.forms.variant import Quantize, Variant
from onnxq.options.recipe import Recipe
from onnxq.plan.spec import integer_bytes
from onnxq.runtime.costs import stage
from onnxq.search.evaluator import ModelEvaluator, TrialCache
from onnxq.search.goal import find_frontier, goal_of
from onnxq.search.search import Search, SearchResult
from onnxq.search.sweep import by_weight
from onnxq.search.table import Row, SweepTable, choices, is_free


class Trial(Protocol):
    """Brief training of any variant."""

    def __call__(self, variant: Variant) -> Variant:
        """The variant after training within the budget of a trial."""

    def has_time(self) -> bool:
        """Whether there is time for another trial."""


@dataclass(frozen=True)
class SearchStage:
    """One search for layer settings.

    Attributes:
        recipe: the options.
        base: the form of the model, with integer weights.
        quantize: quantizes a form of the model: plan, calibrate, student.
        sweep: measures each setting of each layer of `base` alone.
        trial: trains a variant within the budget of a trial.
        original_bytes: size of the original file.
        file_bytes: the file size of a variant under a recipe.
        cache: results of earlier trials of the same run.
    """

    recipe: Recipe
    base: Variant
    quantize: Quantize
    sweep: Callable[[], SweepTable]
    trial: Trial
    original_bytes: int
    file_bytes: Callable[[Variant, Recipe], int]
    cache: TrialCache

    @stage("search")
    def run(self) -> SearchResult:
        """Sweep, allocate, and try whole models.

        Raises:
            RecipeError: no file can be as small as the recipe asks for, or it leaves nothing to
                search.
        """
        plan = self.base.student.plan
        self._check_size()
        if not any(is_free(group, plan, self.recipe) for group in by_weight(plan)):
            raise RecipeError(
                "The recipe states the bits or the codebook of every layer, so that there is "
                "nothing to search; leave one of them out ('layers', 'first_last_bits')."
            )
        table = self.cache.sweep(self.sweep)
        rows = choices(table, plan, self.recipe, floats=self.recipe.activation_bits is None)
        evaluator = self._evaluator(rows)
        frontier = find_frontier([row.effects for row in rows])
        goal = goal_of(self.recipe, self.original_bytes, table.measure)
        search = Search(frontier, table.measure, goal, evaluator)
        best = search.run()
        settings = frontier.settings(best.point)
        recipe = evaluator.recipe(settings)
        return SearchResult(
            recipe=recipe,
            goal=goal,
            table=table,
            frontier=frontier,
            rows=rows,
            settings=settings,
            trials=search.trials,
            best=best,
            met=search.met(best),
            slope=search.slope,
            cut_short=search.cut_short,
        )

    def _evaluator(self, rows: list[Row]) -> ModelEvaluator:
        return ModelEvaluator(
            self.recipe,
            rows,
            self.quantize,
            self.base,
            self.trial,
            self.file_bytes,
            self.cache,
            self.trial.has_time,
        )

    def _check_size(self) -> None:
        """Refuse a size that nodes, names and biases alone exceed."""
        goal = goal_of(self.recipe, self.original_bytes, "kl")
        if goal.max_size is None:
            return
        plan = self.base.student.plan
        weights = sum(
            {
                s.weight: integer_bytes(s.parameters, s.num_bits, s.rows)
                for s in plan.layers.values()
            }.values()
        )
        headers = self._evaluator([]).size(self.base, []) - weights
        if goal.max_size <= headers:
            raise RecipeError(
                f"The option 'max_size' asks for {goal.max_size:,} bytes, and without its weights "
                f"the file has {headers:,} already; give a size above that."
            )
