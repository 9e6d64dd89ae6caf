"""The loss on held-out samples.

By which training is judged without labels, and the best values by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxq.runtime.dataset import Dataset
from onnxq.runtime.session import SessionPool
from onnxq.student.qparams import QParams
from onnxq.train.loss import AGREES, LOSS
from onnxq.train.objective import Objective
from onnxq.train.teacher import MICRO_BATCH


@dataclass(frozen=True)
class Score:
    """How near some numbers are to the teacher.

    Attributes:
        score: in the objective's unit; lower is better.
        agreement: percentage of equal decisions; None where the model does not decide.
    """

    score: float
    agreement: float | None = None


class HeldOut:
    """Scores the numbers of a student against the teacher on samples nothing is learned on.

    Args:
        student: the student with its loss attached.
        samples: the held-out samples with the teacher's values beside them.
        objective: whose loss it is.
    """

    def __init__(self, student: ir.Model, samples: Dataset, objective: Objective) -> None:
        self._student, self._samples, self._objective = student, samples, objective
        self._pool: SessionPool | None = None

    def release(self) -> None:
        """Give back the memory of the session, which the next score opens again."""
        self._pool = None

    def score(
        self,
        parameters: Mapping[str, np.ndarray],
        indices: np.ndarray | None = None,
        batch_size: int = MICRO_BATCH,
    ) -> float:
        """The objective's score, on some indices or on all; lower is better."""
        return self.judge(parameters, indices, batch_size).score

    def judge(
        self,
        parameters: Mapping[str, np.ndarray],
        indices: np.ndarray | None = None,
        batch_size: int = MICRO_BATCH,
    ) -> Score:
        """The score and the agreement, on some indices or on all."""
        batches = self._samples.batches(batch_size, indices)
        if self._pool is None:
            self._pool = SessionPool(self._student)
        chosen = len(self._samples) if indices is None else len(indices)
        loss, agrees, count = 0.0, 0.0, chosen * (self._samples.batch or 1)
        for found in self._pool.map({**parameters, **feeds} for feeds in batches):
            loss += float(found[LOSS])
            agrees += float(found.get(AGREES, 0.0))
        decides = AGREES in self._pool.outputs
        agreement = 100 * agrees / max(count, 1) if decides else None
        return Score(self._objective.score(loss, count), agreement)


Point = tuple[float, float, float]
"""Seconds of learning, the held-out score and the percentage of equal decisions, or NaN."""


@dataclass
class TrainingHistory:
    """How a run of training went.

    Attributes:
        start_score: the objective's held-out score before.
        score: the held-out score of what was kept.
        epoch: the epoch that gave it; 0 means that the start was kept.
        history: the held-out score after each epoch.
        unit: what the scores are.
        seconds: time spent in epochs.
        images: samples seen in training steps.
        notes: sentences for the user.
        curve: where learning stood at the end of each epoch, by the clock.
    """

    start_score: float
    score: float
    epoch: int = 0
    history: list[float] = field(default_factory=list)
    unit: str = "error"
    seconds: float = 0.0
    images: int = 0
    notes: list[str] = field(default_factory=list)
    curve: list[Point] = field(default_factory=list)

    @property
    def improved(self) -> bool:
        """Whether training beat its starting point."""
        return self.epoch > 0


@dataclass
class Learned(TrainingHistory):
    """What came out of learning.

    Attributes:
        qparams: the best numbers found, by the held-out score.
    """

    qparams: QParams = field(kw_only=True)

    def after(self, first: Learned) -> Learned:
        """What came out of two methods, one after the other; epochs are counted through.

        Where the two have different scores, those of the first are let go.
        """
        same = self.unit == first.unit
        before = len(first.history) if same else 0
        earlier = first.epoch if same else int(first.improved)
        curve = [
            (first.seconds + spent, score, agreement) for spent, score, agreement in self.curve
        ]
        return replace(
            self,
            start_score=first.start_score if same else self.start_score,
            epoch=before + self.epoch if self.improved else earlier,
            history=[*first.history, *self.history] if same else self.history,
            seconds=first.seconds + self.seconds,
            images=first.images + self.images,
            notes=[*first.notes, *self.notes],
            curve=[*first.curve, *curve] if same else curve,
        )
