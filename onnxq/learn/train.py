"""Training by gradients: some parameters are trained, the rest of the student is frozen."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxq.engine import Engine, ungradable_nodes
from onnxq.forms.variant import Variant
from onnxq.learn.frozen import Remainder, freeze
from onnxq.learn.trained import Trained, make_parts
from onnxq.progress import Progress
from onnxq.runtime.dataset import Joined
from onnxq.runtime.session import Arrays
from onnxq.runtime.temporary import temporary_folder
from onnxq.student.qparams import QParams
from onnxq.student.student import Student
from onnxq.train.augment import Transform
from onnxq.train.batch_size import sized_for
from onnxq.train.budget import Budget
from onnxq.train.checkpoint import Checkpoint
from onnxq.train.held_out import HeldOut, Learned, Score
from onnxq.train.loop import Loop
from onnxq.train.loss import LOSS
from onnxq.train.objective import Objective, choose_objective


class Learning(Loop[Learned]):
    """One run of training a student.

    Args:
        student: the student.
        remainder: the loss graph to run, and its feeds.
        objective: the loss.
        start: the quantization parameters to start from.
        trained: the trained values, at their start.
        budget: how long and how fast.
        checkpoint: None keeps none.
        transform: how the training samples change in each epoch; None leaves them unchanged.
    """

    def __init__(
        self,
        student: Student,
        remainder: Remainder,
        objective: Objective,
        start: QParams,
        trained: Trained,
        budget: Budget,
        checkpoint: Checkpoint | None = None,
        transform: Transform | None = None,
    ) -> None:
        self._student, self._parts, self._now = student, trained, start
        self._constants = remainder.constants
        self._held_out = HeldOut(remainder.model, remainder.held_out, objective)
        self._moving = student.moving_inputs(trained.names)
        engine = Engine(remainder.model, trained.names, LOSS)
        scored = self._judge_taken()
        history = Learned(scored.score, scored.score, unit=objective.unit, qparams=start)
        super().__init__(
            engine, remainder.train, objective, trained, budget, scored, history, checkpoint,
            transform,
        )  # fmt: skip

    def _feeds(self) -> Arrays:
        return {**self._constants, **self._student.feeds(self._now, self._moving)}

    def _begin(self) -> None:
        if self._transform is not None:
            self._transform.begin(self._parts.qparams(), self._late)

    def _parameters(self) -> Arrays:
        self._take()
        return self._feeds()

    def _chained(self, found: Mapping[str, np.ndarray]) -> Arrays:
        return self._parts.gradients(found, self._now)

    def _take(self) -> None:
        self._now = self._parts.qparams()

    def _judge_taken(self) -> Score:
        return self._held_out.judge(self._feeds())

    def _keep(self) -> None:
        self._result.qparams = self._now


NO_GAIN = "did not beat its starting point on the held-out samples, which is kept"
NO_CLASSIFIER = (
    "the outputs were matched and not distilled, since they are not the logits of one classifier"
)
TOO_FAST = f"{NO_GAIN}; the error became much larger: try a smaller --lr"
MUCH = 1.1
"""Ratio to the error at the start above which the learning rate is to blame."""


def train_parameters(
    variant: Variant,
    train: Joined,
    wanted: frozenset[str],
    budget: Budget,
    progress: Progress,
    checkpoint: Checkpoint | None,
    resume: bool,
    transform: Transform | None,
) -> Learned:
    """A variant's quantization parameters, some trained together; arguments as of `learn`."""
    student, start = variant.student, variant.qparams
    kept = Learned(variant.score, variant.score, qparams=start)
    if "weights" in wanted:
        start = student.with_corrections_kept(start)
    parts = make_parts(wanted, student.plan, start, variant.full_ranges(), variant.elements())
    if not parts:
        return kept
    trained = Trained(parts, student.plan, start)
    objective = choose_objective(variant.objective, distil=budget.distils())
    loss_model = sized_for(objective.attach(student.model), train.parts[0])
    refused = ungradable_nodes(loss_model, trained.names)
    if refused:
        node, op_type, reason = refused[0]
        kept.notes.append(
            f"the student was calibrated but not learned: '{node}' ({op_type}) has no gradient "
            f"({reason})"
        )
        return kept
    with temporary_folder() as folder:
        moving = student.moving_inputs(trained.names)
        feeds = student.feeds(start)
        fixed = {name: value for name, value in feeds.items() if name not in moving}
        slices = (train, variant.held_out_outputs)
        keep = transform is None
        remainder = freeze(loss_model, fixed, moving, slices, folder, progress, keep=keep)
        learning = Learning(
            student, remainder, objective, start, trained, budget, checkpoint, transform
        )
        learned = learning.run(progress, resume)
    learned.notes += [note for note in (remainder.note,) if note]
    if budget.loss == "distillation" and variant.objective.decision is None:
        learned.notes.append(NO_CLASSIFIER)
    if not learned.improved:
        learned.qparams = variant.qparams
        lowest = min(learned.history, default=0.0)
        result = TOO_FAST if lowest > MUCH * learned.start_score else NO_GAIN
        learned.notes.append(f"learning of {' and '.join(sorted(wanted))} {result}")
    elif "weights" in wanted:
        learned.qparams = student.with_weights_on_grid(learned.qparams)
    return learned
