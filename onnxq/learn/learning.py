"""Train the numbers of a student, as parts that all have one interface."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxq.learn.budget import Budget
from onnxq.learn.changes import Changes
from onnxq.learn.checkpoint import Checkpoint
from onnxq.learn.engine import Engine
from onnxq.learn.frozen import Remainder
from onnxq.learn.held_back import HeldBack, Judgement
from onnxq.learn.learned import Learned
from onnxq.learn.loop import Loop
from onnxq.learn.loss import LOSS
from onnxq.learn.objective import Objective
from onnxq.learn.trained import Trained
from onnxq.rewrite.quantizers import Quantizers, moving_inputs, student_feeds
from onnxq.rewrite.student import Student
from onnxq.session import Arrays


class Learning(Loop[Learned]):
    """One run of learning.

    Args:
        student: the student.
        remainder: the loss graph to run, and its feeds.
        objective: whose loss it is.
        start: the numbers to start from.
        trained: what is trained, from those numbers on.
        budget: how long and how fast.
        checkpoint: where to keep the state; None keeps none.
        changes: what becomes of the training samples in each epoch; None leaves them.
    """

    def __init__(
        self,
        student: Student,
        remainder: Remainder,
        objective: Objective,
        start: Quantizers,
        trained: Trained,
        budget: Budget,
        checkpoint: Checkpoint | None = None,
        changes: Changes | None = None,
    ) -> None:
        self._student, self._numbers, self._now = student, trained, start
        self._constants = remainder.constants
        self._held_back = HeldBack(remainder.model, remainder.held_back, objective)
        self._moving = moving_inputs(student.plan, student.sources, trained.names)
        engine = Engine(remainder.model, trained.names, LOSS)
        judged = self._judge_taken()
        course = Learned(judged.score, judged.score, unit=objective.unit, quantizers=start)
        super().__init__(
            engine, remainder.train, objective, trained, budget, judged, course, checkpoint,
            changes,
        )  # fmt: skip

    def _feeds(self) -> Arrays:
        plan, sources = self._student.plan, self._student.sources
        return {**self._constants, **student_feeds(plan, self._now, sources, self._moving)}

    def _begin(self) -> None:
        if self._changes is not None:
            self._changes.begin(self._numbers.quantizers(), self._late)

    def _parameters(self) -> Arrays:
        self._take()
        return self._feeds()

    def _chained(self, found: Mapping[str, np.ndarray]) -> Arrays:
        return self._numbers.gradients(found, self._now)

    def _take(self) -> None:
        self._now = self._numbers.quantizers()

    def _judge_taken(self) -> Judgement:
        return self._held_back.judge(self._feeds())

    def _keep(self) -> None:
        self._result.quantizers = self._now
