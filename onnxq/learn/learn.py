"""Learn the numbers of a variant: one method after the other, each kept where it helps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from onnxq.learn import train as train_stage
from onnxq.learn.budget import Budget
from onnxq.learn.changes import Changes
from onnxq.learn.checkpoint import Checkpoint
from onnxq.learn.learned import Learned
from onnxq.learn.rounding import reconstruct as rounding
from onnxq.learn.rounding.reconstruct import reconstruct
from onnxq.learn.stages import ROUNDING, in_order, spelt_out
from onnxq.learn.teacher import TeacherOutputs
from onnxq.learn.train import train_numbers
from onnxq.learn.variants import Variant
from onnxq.progress import Progress, Silent

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
    found = Learned(variant.score, variant.score, quantizers=variant.quantizers)
    for stage in stages:
        last = stage is stages[-1]
        seconds = max(0.0, budget.max_seconds - found.seconds)
        left = replace(budget, max_seconds=seconds if last else FIRST_SHARE * seconds)
        # The last one has the run's own checkpoint; what went before is done when it begins.
        kept = checkpoint.part("-".join(sorted(stage))) if checkpoint and not last else checkpoint
        now = variant
        if found.quantizers is not variant.quantizers:
            score = variant.score_of(found.quantizers)
            now = replace(variant, quantizers=found.quantizers, score=score)
        if stage == ROUNDING:
            done = reconstruct(now, train, left, progress=progress, checkpoint=kept, resume=resume)
        else:
            done = train_numbers(now, train, stage, left, progress, kept, resume, changes)
        found = done if stage is stages[0] else done.after(found)
    if "auto" in learns and found.improved:
        # That one of several methods added nothing is no news to who asked for none of them.
        found.notes = [note for note in found.notes if not note.endswith(NOTHING_WON)]
    return found
