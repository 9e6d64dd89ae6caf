"""The label-free judge: the student's loss on the held-back slice of the samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.learn.loss import AGREES, LOSS
from onnxq.learn.objective import Objective
from onnxq.learn.teacher import MICRO_BATCH, Targeted
from onnxq.session import SessionPool


@dataclass(frozen=True)
class Judgement:
    """How near some numbers are to the teacher.

    Attributes:
        score: in the objective's unit; lower is better.
        agreement: percentage of equal decisions; None where the model does not decide.
    """

    score: float
    agreement: float | None = None


class HeldBack:
    """Scores the numbers of a student against the teacher on samples nothing is learned on.

    Args:
        student: the student with its loss attached.
        outputs: the teacher's outputs on the held-back samples.
        objective: whose loss it is.
    """

    def __init__(self, student: ir.Model, outputs: Targeted, objective: Objective) -> None:
        self._student, self._outputs, self._objective = student, outputs, objective
        self._pool: SessionPool | None = None

    def release(self) -> None:
        """Give back the memory of the session, which the next score opens again."""
        self._pool = None

    def score(
        self,
        parameters: Mapping[str, np.ndarray],
        positions: np.ndarray | None = None,
        batch_size: int = MICRO_BATCH,
    ) -> float:
        """The objective's score, on some positions or on all; lower is better."""
        return self.judge(parameters, positions, batch_size).score

    def judge(
        self,
        parameters: Mapping[str, np.ndarray],
        positions: np.ndarray | None = None,
        batch_size: int = MICRO_BATCH,
    ) -> Judgement:
        """The score and the agreement, on some positions or on all."""
        if positions is None:
            positions = np.arange(self._outputs.positions)
        batches = self._outputs.batches(positions, batch_size)
        if self._pool is None:
            self._pool = SessionPool(self._student)
        loss, agrees, count = 0.0, 0.0, len(positions) * (self._outputs.batch or 1)
        for found in self._pool.map({**parameters, **feeds} for feeds in batches):
            loss += float(found[LOSS])
            agrees += float(found.get(AGREES, 0.0))
        decides = AGREES in self._pool.outputs
        agreement = 100 * agrees / max(count, 1) if decides else None
        return Judgement(self._objective.score(loss, count), agreement)
