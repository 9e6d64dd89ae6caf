"""Learn the parameters of a student: one method after the other, each kept where it helps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from onnxq.forms.forms import Variant
from onnxq.learn import train as train_stage
from onnxq.learn.gptq import reconstruct as rounding
from onnxq.learn.gptq.reconstruct import reconstruct
from onnxq.learn.train import train_parameters
from onnxq.plan import Plan
from onnxq.plan.spec import CODE_BITS
from onnxq.progress import Progress, Silent
from onnxq.train.augment import Changes
from onnxq.train.budget import Budget
from onnxq.train.checkpoint import Checkpoint
from onnxq.train.held_out import Learned
from onnxq.train.teacher import TeacherOutputs

ROUNDING = frozenset({"rounding"})
WITH_THRESHOLDS = frozenset({"thresholds", "codebooks"})
"""What is learned before rounding: ranges that move afterwards undo what was fitted to them."""

FEW_BITS, FEWEST_WEIGHT_BITS = 5, 2
"""Widths of tensors and of weights from which down straight-through training gains, after rounding,
more than its noise costs."""
MANY_BITS = 7
"""Width from which up learned thresholds gain what rounding does not."""


def spelt_out(
    learns: Collection[str], plan: Plan, *, shared_biases: bool = False
) -> frozenset[str]:
    """The options with `auto` in words.

    - Codebooks are learned wherever there are some, codes rounded layer by layer.
    - Tensors of 5 bits and less, and weights of 2, are trained too: steps, weights and biases.
    - Where all have 7 or 8, thresholds come first (FAT): the ranges matter most.

    Args:
        learns: as in a recipe.
        plan: whose widths decide.
        shared_biases: whether biases share centroids; they would not after they were learned
            with the weights, which stay then.
    """
    if "auto" not in learns:
        return frozenset(learns) - {"none"}
    weights = [spec.num_bits for spec in plan.layers.values() if spec.codebook is None]
    tensors = [spec.num_bits for spec in plan.tensors.values()]
    narrowest, fewest = min(tensors, default=CODE_BITS), min(weights, default=CODE_BITS)
    found = {"rounding"} if weights else set[str]()
    if len(weights) < len(plan.layers):
        found.add("codebooks")
    if narrowest <= FEW_BITS or fewest <= FEWEST_WEIGHT_BITS:
        found |= {"steps"} if shared_biases else {"steps", "weights"}
    elif min(narrowest, fewest) >= MANY_BITS or not weights:
        found.add("thresholds")
    return frozenset(found)


def learns_weights(learns: Collection[str], plan: Plan, *, shared_biases: bool = False) -> bool:
    """Whether the weights behind codes are trained; arguments as of `spelt_out`."""
    return "weights" in spelt_out(learns, plan, shared_biases=shared_biases)


def in_order(wanted: frozenset[str]) -> list[frozenset[str]]:
    """What is learned together, in turn."""
    if not wanted & ROUNDING:
        return [wanted] if wanted else []
    first = wanted & WITH_THRESHOLDS if "thresholds" in wanted else frozenset[str]()
    stages = [first, ROUNDING, wanted - first - ROUNDING]
    return [stage for stage in stages if stage]


FIRST_SHARE = 0.5
"""Share of the time that is left which a stage may take, unless it is the last."""

NOTHING_WON = (rounding.NO_GAIN, train_stage.NO_GAIN)
"""How the notes end that say so."""


def learn(
    variant: Variant,
    train: TeacherOutputs,
    learns: Collection[str],
    budget: Budget | None = None,
    *,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
    changes: Changes | None = None,
) -> Learned:
    """The numbers of a variant, trained to match the original's outputs.

    Nothing else is changed: any variant may be learned at any time, as often as wanted.

    Args:
        variant: the student and the numbers to start from.
        train: the original's outputs on the training slice.
        learns: what to train, as in a recipe.
        budget: how long and how fast.
        progress: told how far it is.
        checkpoint: where to keep the state; None keeps none.
        resume: whether to go on from that state.
        changes: what becomes of the training samples in each epoch; None leaves them.

    Returns:
        The best numbers; the variant's own where nothing is trained or nothing helped.
    """
    budget, progress = budget or Budget(), progress or Silent()
    shared = variant.recipe.bias_centroids is not None
    stages = in_order(spelt_out(learns, variant.student.plan, shared_biases=shared))
    found = Learned(variant.score, variant.score, qparams=variant.qparams)
    for stage in stages:
        last = stage is stages[-1]
        seconds = max(0.0, budget.max_seconds - found.seconds)
        left = replace(budget, max_seconds=seconds if last else FIRST_SHARE * seconds)
        # The last one has the run's own checkpoint; what went before is done when it begins.
        kept = checkpoint.part("-".join(sorted(stage))) if checkpoint and not last else checkpoint
        now = variant
        if found.qparams is not variant.qparams:
            score = variant.score_of(found.qparams)
            now = replace(variant, qparams=found.qparams, score=score)
        if stage == ROUNDING:
            done = reconstruct(now, train, left, progress=progress, checkpoint=kept, resume=resume)
        else:
            done = train_parameters(now, train, stage, left, progress, kept, resume, changes)
        found = done if stage is stages[0] else done.after(found)
    if "auto" in learns and found.improved:
        # That one of several methods added nothing is no news to who asked for none of them.
        found.notes = [note for note in found.notes if not note.endswith(NOTHING_WON)]
    return found
