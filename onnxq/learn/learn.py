"""Learn the numbers of a variant: what is trained is chosen, the rest frozen, the loop run."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx_ir as ir

from onnxq.learn.checkpoint import Checkpoint
from onnxq.learn.engine.ungradable import ungradable_nodes
from onnxq.learn.frozen import freeze
from onnxq.learn.learning import Budget, Learned, Learning
from onnxq.learn.rounding.reconstruct import reconstruct
from onnxq.learn.sizes import fix_sizes
from onnxq.learn.teacher import TeacherOutputs
from onnxq.learn.trained import Trained, make_parts
from onnxq.learn.variants import Variant
from onnxq.progress import Progress, Silent
from onnxq.rewrite.quantizers import moving_inputs, student_feeds

NO_GAIN = "learning did not beat its starting point on the held-back samples, which is kept"
TOO_FAST = f"{NO_GAIN}; it made the error much larger: try a smaller --lr"
BEFORE_ROUNDING = frozenset({"thresholds"})
"""What is learned before rounding: ranges that move afterwards undo what was fitted to them."""
FIRST_SHARE = 0.5
"""Share of the time that it may take."""
MUCH = 1.1
"""Ratio to the error at the start above which the learning rate is to blame."""


def learn(
    variant: Variant,
    train: TeacherOutputs,
    learns: Collection[str],
    budget: Budget | None = None,
    *,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
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

    Returns:
        The best numbers; the variant's own where nothing is trained or nothing helped.
    """
    if "rounding" in learns:
        return _in_turn(
            variant, train, learns, budget, progress=progress, checkpoint=checkpoint, resume=resume
        )
    plan, start = variant.student.plan, variant.quantizers
    kept = Learned(start, variant.score, variant.score)
    parts = make_parts(set(learns), plan, start, variant.extremes())
    if not parts:
        return kept
    trained = Trained(parts, plan, start)
    loss_model = _sized(variant.loss_model, train)
    refused = ungradable_nodes(loss_model, trained.names)
    if refused:
        node, op_type, reason = refused[0]
        kept.notes.append(
            f"the student was calibrated but not learned: '{node}' ({op_type}) has no gradient "
            f"({reason})"
        )
        return kept
    with tempfile.TemporaryDirectory(prefix="learn-", dir=train.folder) as folder:
        moving = moving_inputs(plan, variant.student.sources, trained.names)
        feeds = student_feeds(plan, start, variant.student.sources)
        fixed = {name: value for name, value in feeds.items() if name not in moving}
        slices = (train, variant.held_back_outputs)
        progress = progress or Silent()
        remainder = freeze(loss_model, fixed, moving, slices, Path(folder), progress)
        learning = Learning(
            variant.student, remainder, start, trained, budget or Budget(), checkpoint
        )
        learned = learning.run(progress, resume)
    learned.notes += [note for note in (remainder.note,) if note]
    if not learned.improved:
        lowest = min(learned.history, default=0.0)
        learned.notes.append(TOO_FAST if lowest > MUCH * learned.start_score else NO_GAIN)
    return learned


def _in_turn(
    variant: Variant,
    train: TeacherOutputs,
    learns: Collection[str],
    budget: Budget | None,
    *,
    progress: Progress | None,
    checkpoint: Checkpoint | None,
    resume: bool,
) -> Learned:
    """Thresholds, then rounding, which fits codes to their ranges, then whatever else there is."""
    budget = budget or Budget()
    first, rest = set(learns) & BEFORE_ROUNDING, set(learns) - BEFORE_ROUNDING - {"rounding"}
    found = Learned(variant.quantizers, variant.score, variant.score)
    for stage in (first, {"rounding"}, rest):
        if not stage:
            continue
        share = FIRST_SHARE if stage is first else 1.0
        left = replace(budget, max_seconds=share * max(0.0, budget.max_seconds - found.seconds))
        kept = checkpoint
        if checkpoint is not None and stage is not rest:
            kept = checkpoint.part("-".join(sorted(stage)))
        work = reconstruct if stage == {"rounding"} else partial(learn, learns=stage)
        now = replace(variant, quantizers=found.quantizers, score=found.score)
        done = work(now, train, budget=left, progress=progress, checkpoint=kept, resume=resume)
        found = done.after(found)
    return found


def _sized(loss_model: ir.Model, train: TeacherOutputs) -> ir.Model:
    """The graph with the sizes of the samples: those that are stacked have one shape."""
    if train.samples.batch is not None:
        return loss_model
    return fix_sizes(loss_model, next(train.samples.batches(1)))
