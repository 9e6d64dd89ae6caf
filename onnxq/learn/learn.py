"""Train a student's parameters by one method after the other; each is kept where it helps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from onnxq.forms.variant import Variant
from onnxq.learn import train as train_stage
from onnxq.learn.gptq import reconstruct as rounding
from onnxq.learn.gptq.reconstruct import reconstruct
from onnxq.learn.train import train_parameters
from onnxq.options.recipe import Recipe
from onnxq.options.table import Effort
from onnxq.plan import Plan
from onnxq.plan.spec import BYTE_BITS
from onnxq.progress import Progress, Silent
from onnxq.runtime.clock import Clock, left_out
from onnxq.runtime.costs import stage as count_stage
from onnxq.runtime.dataset import Joined
from onnxq.train.augment import Transform
from onnxq.train.budget import Budget, recipe_budget
from onnxq.train.checkpoint import Checkpoint
from onnxq.train.held_out import Learned

ROUNDING = frozenset({"rounding"})
WITH_THRESHOLDS = frozenset({"thresholds", "codebooks"})
"""Trained before GPTQ: ranges that change afterwards would undo its fit."""

LOW_BITS, FEWEST_WEIGHT_BITS = 5, 2
"""Largest bit widths of tensors and of weights at which training after GPTQ gains more than
more than its noise costs."""
MANY_BITS = 7
"""Least bit width at which learned thresholds gain what GPTQ does not."""


def spelt_out(
    learns: Collection[str],
    plan: Plan,
    *,
    shared_biases: bool = False,
    effort: Effort = "default",
) -> frozenset[str]:
    """The options of `learn` with `auto` replaced by what it stands for.

    - Codebooks are trained wherever there are some; integer weights are fitted by GPTQ.
    - With tensors of 5 bits or less, or weights of 2, steps, weights and biases are trained too.
    - Where all have 7 or 8 bits, thresholds come first (FAT): the ranges matter most.

    Args:
        learns: as in a recipe.
        plan: gives the bit widths.
        shared_biases: whether biases share centroids. Weights are not trained then, since their
            biases would be trained with them and no longer be shared.
        effort: 'fast' leaves GPTQ alone of what `auto` stands for.
    """
    if "auto" not in learns:
        return frozenset(learns) - {"none"}
    weights = [spec.num_bits for spec in plan.layers.values() if spec.codebook is None]
    tensors = [spec.num_bits for spec in plan.tensors.values()]
    narrowest, fewest = min(tensors, default=BYTE_BITS), min(weights, default=BYTE_BITS)
    found = {"rounding"} if weights else set[str]()
    if effort == "fast":
        return frozenset(found)
    if len(weights) < len(plan.layers):
        found.add("codebooks")
    if narrowest <= LOW_BITS or fewest <= FEWEST_WEIGHT_BITS:
        found |= {"steps"} if shared_biases else {"steps", "weights"}
    elif min(narrowest, fewest) >= MANY_BITS or not weights:
        found.add("thresholds")
    return frozenset(found)


def learns_weights(
    learns: Collection[str],
    plan: Plan,
    *,
    shared_biases: bool = False,
    effort: Effort = "default",
) -> bool:
    """Whether float weights behind the integer ones are trained; arguments as of `spelt_out`."""
    return "weights" in spelt_out(learns, plan, shared_biases=shared_biases, effort=effort)


def uses_gradients(recipe: Recipe, plan: Plan) -> bool:
    """Whether gradients have a part in the result: of training, of trials or of images."""
    trials = recipe.searches and "auto" in recipe.learn
    shared = recipe.bias_centroids is not None
    trained = spelt_out(recipe.learn, plan, shared_biases=shared) - ROUNDING
    return recipe.data_free or trials or bool(trained)


def in_order(wanted: frozenset[str]) -> list[frozenset[str]]:
    """The stages of training, each a set of options that are trained together."""
    if not wanted & ROUNDING:
        return [wanted] if wanted else []
    first = wanted & WITH_THRESHOLDS if "thresholds" in wanted else frozenset[str]()
    stages = [first, ROUNDING, wanted - first - ROUNDING]
    return [stage for stage in stages if stage]


FIRST_PASSES = 4.0
"""Forward passes that thresholds take at most before GPTQ, which wins most of what they win."""
FIRST_SHARE = 0.5
"""Share of the remaining time that any stage but the last may take."""

NOTHING_WON = (rounding.NO_GAIN, train_stage.NO_GAIN)
"""Endings of the notes of a stage that gained nothing."""


def learn(
    variant: Variant,
    train: Joined,
    learns: Collection[str],
    budget: Budget | None = None,
    *,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
    transform: Transform | None = None,
) -> Learned:
    """A variant's parameters, trained to match the original's outputs.

    The variant isn't changed, and may be trained any number of times.

    Args:
        variant: the student, and the quantization parameters to start from.
        train: the training slice, joined with the original's outputs.
        learns: what to train, as in a recipe.
        budget: how long and how fast.
        progress: told how far it is.
        checkpoint: None keeps none.
        resume: whether to resume from the checkpoint.
        transform: how the training samples change in each epoch; None leaves them unchanged.

    Returns:
        The best quantization parameters; the variant's own where nothing is trained or nothing
        helped.
    """
    budget, progress = budget or Budget(), progress or Silent()
    shared = variant.recipe.bias_centroids is not None
    plan = variant.student.plan
    wanted = spelt_out(learns, plan, shared_biases=shared, effort=budget.effort)
    stages = in_order(wanted)
    found = Learned(variant.score, variant.score, qparams=variant.qparams)
    for stage in stages:
        last = stage is stages[-1]
        left = _budget_of(stage, stages, budget, found.seconds)
        if max(0.0, left.max_seconds) < budget.least_seconds:
            found.notes.append(left_out(f"the learning of {' and '.join(sorted(stage))}"))
            continue
        # The last stage has the run's own checkpoint; earlier ones are finished when it begins.
        kept = checkpoint.part("-".join(sorted(stage))) if checkpoint and not last else checkpoint
        now = variant
        if found.qparams is not variant.qparams:
            score = variant.score_of(found.qparams)
            now = replace(variant, qparams=found.qparams, score=score)
        with count_stage(f"learn {', '.join(sorted(stage))}"):
            if stage == ROUNDING:
                done = reconstruct(
                    now, train, left, progress=progress, checkpoint=kept, resume=resume
                )
            else:
                done = train_parameters(now, train, stage, left, progress, kept, resume, transform)
        found = done if stage is stages[0] else done.after(found)
    if "auto" in learns and found.improved:
        # With `auto` nobody asked for a single method: that one gained nothing is no news.
        found.notes = [note for note in found.notes if not note.endswith(NOTHING_WON)]
    return found


def _budget_of(
    stage: frozenset[str], stages: Sequence[frozenset[str]], budget: Budget, spent: float
) -> Budget:
    """What one of the stages may take, where those before it took so many seconds."""
    seconds = max(0.0, budget.max_seconds - spent)
    last = stage is stages[-1]
    left = replace(budget, max_seconds=seconds if last else FIRST_SHARE * seconds)
    if ROUNDING in stages[stages.index(stage) + 1 :]:
        return replace(left, most_passes=FIRST_PASSES)
    return left


TRIAL_EPOCHS = 2
"""Passes over the samples in which a search learns what it tries."""

TRIALS_SHARE = 0.5
"""Share of the time that a search may learn in: the other half is for the model found."""


@dataclass(frozen=True)
class Trial:
    """Brief training of any variant, for a search.

    Attributes:
        train: the training slice, joined with the original's outputs.
        batch_size: samples in one run.
        transform: returns the augmentation of a variant; no fresh images are generated.
        clock: of the run.
        progress: told how far it is.
    """

    train: Joined
    batch_size: int
    transform: Callable[[Variant], Transform | None]
    clock: Clock
    progress: Progress

    def __call__(self, variant: Variant) -> Variant:
        """The variant after brief training."""
        recipe = variant.recipe
        budget = recipe_budget(recipe, self.batch_size, self.clock.left(TRIALS_SHARE))
        budget = replace(budget, epochs=min(TRIAL_EPOCHS, budget.epochs or TRIAL_EPOCHS))
        transform = self.transform(variant)
        learned = learn(
            variant, self.train, recipe.learn, budget, progress=self.progress, transform=transform
        )
        return variant.with_learned(learned)

    def has_time(self) -> bool:
        """Whether there is time for another trial."""
        return self.clock.left(TRIALS_SHARE) > 0
