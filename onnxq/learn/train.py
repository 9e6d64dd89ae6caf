"""One stage of learning by gradients: what stays is frozen, the rest trained."""

from __future__ import annotations

import tempfile
from pathlib import Path

from onnxq.learn.budget import Budget
from onnxq.learn.changes import Changes
from onnxq.learn.checkpoint import Checkpoint
from onnxq.learn.engine.ungradable import ungradable_nodes
from onnxq.learn.frozen import freeze
from onnxq.learn.learned import Learned
from onnxq.learn.learning import Learning
from onnxq.learn.objective import choose_objective
from onnxq.learn.sizes import sized_for
from onnxq.learn.teacher import TeacherOutputs
from onnxq.learn.trained import Trained, make_parts
from onnxq.learn.variants import Variant
from onnxq.progress import Progress
from onnxq.rewrite.quantizers import moving_inputs, student_feeds

NO_GAIN = "did not beat its starting point on the held-back samples, which is kept"
NO_CLASSIFIER = (
    "the outputs were matched and not distilled, since they are not the logits of one classifier"
)
TOO_FAST = f"{NO_GAIN}; the error became much larger: try a smaller --lr"
MUCH = 1.1
"""Ratio to the error at the start above which the learning rate is to blame."""


def train_numbers(
    variant: Variant,
    train: TeacherOutputs,
    wanted: frozenset[str],
    budget: Budget,
    progress: Progress,
    checkpoint: Checkpoint | None,
    resume: bool,
    changes: Changes | None,
) -> Learned:
    """The numbers of a variant with some of them trained together; arguments as of `learn`."""
    plan, sources = variant.student.plan, variant.student.sources
    start = variant.quantizers
    kept = Learned(variant.score, variant.score, quantizers=start)
    if "weights" in wanted:
        start = start.with_corrections_kept(plan, sources)
    parts = make_parts(wanted, plan, start, variant.extremes(), variant.elements())
    if not parts:
        return kept
    trained = Trained(parts, plan, start)
    objective = choose_objective(train, distil=budget.distils())
    loss_model = sized_for(objective.attach(variant.student.model), train.samples)
    refused = ungradable_nodes(loss_model, trained.names)
    if refused:
        node, op_type, reason = refused[0]
        kept.notes.append(
            f"the student was calibrated but not learned: '{node}' ({op_type}) has no gradient "
            f"({reason})"
        )
        return kept
    with tempfile.TemporaryDirectory(prefix="learn-", dir=train.folder) as folder:
        moving = moving_inputs(plan, sources, trained.names)
        feeds = student_feeds(plan, start, sources)
        fixed = {name: value for name, value in feeds.items() if name not in moving}
        slices = (train, variant.held_back_outputs)
        keep = changes is None
        remainder = freeze(loss_model, fixed, moving, slices, Path(folder), progress, keep=keep)
        learning = Learning(
            variant.student, remainder, objective, start, trained, budget, checkpoint, changes
        )
        learned = learning.run(progress, resume)
    learned.notes += [note for note in (remainder.note,) if note]
    if budget.loss == "distillation" and train.decision is None:
        learned.notes.append(NO_CLASSIFIER)
    if not learned.improved:
        learned.quantizers = variant.quantizers
        lowest = min(learned.history, default=0.0)
        result = TOO_FAST if lowest > MUCH * learned.start_score else NO_GAIN
        learned.notes.append(f"learning of {' and '.join(sorted(wanted))} {result}")
    elif "weights" in wanted:
        learned.quantizers = learned.quantizers.with_weights_on_codes(plan, sources)
    return learned
