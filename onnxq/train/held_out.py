"""The score on held-out samples, which decides without labels what training keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxq.runtime.dataset import Dataset
from onnxq.runtime.session import SessionPool
from onnxq.student.qparams import QParams
from onnxq.train.objective import AGREES, LOSS, Objective
from onnxq.train.teacher import MICRO_BATCH


@dataclass(frozen=True)
class Score:
    """How close a student is to its teacher.

    Attributes:
        score: in the objective's unit; lower is better.
        agreement: percentage of equal decisions; None where the model does not decide.
    """

    score: float
    agreement: float | None = None


class HeldOut:
    """Evaluates a student's parameters against the teacher on held-out samples.

    Args:
        student: the student with its loss attached.
        samples: the held-out samples with their target values.
        objective: the loss.
    """

    def __init__(self, student: ir.Model, samples: Dataset, objective: Objective) -> None:
        self._student, self._samples, self._objective = student, samples, objective
        self._pool: SessionPool | None = None

    def score(
        self,
        parameters: Mapping[str, np.ndarray],
        indices: np.ndarray | None = None,
        batch_size: int = MICRO_BATCH,
    ) -> float:
        """The objective's score, on some indices or on all; lower is better."""
        return self.evaluate(parameters, indices, batch_size).score

    def evaluate(
        self,
        parameters: Mapping[str, np.ndarray],
        indices: np.ndarray | None = None,
        batch_size: int = MICRO_BATCH,
    ) -> Score:
        """The score and the agreement, on some indices or on all."""
        batches = self._samples.batches(batch_size, indices)
        if self._pool is None:
            self._pool = SessionPool(self._student, merge=False)
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
    """The history of a training run.

    Attributes:
        start_score: the held-out score before training.
        score: the held-out score of the result.
        epoch: the epoch that was kept; 0 means the start.
        history: the held-out score after each epoch.
        unit: of the scores.
        seconds: time spent in epochs.
        images: samples seen in training steps.
        notes: sentences for the user.
        curve: seconds, held-out score and agreement after each epoch.
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
        """Whether training improved on its start."""
        return self.epoch > 0


@dataclass
class Learned(TrainingHistory):
    """The result of training.

    Attributes:
        qparams: the best quantization parameters, by the held-out score.
    """

    qparams: QParams = field(kw_only=True)

    def after(self, first: Learned) -> Learned:
        """The joint result of two stages, one after the other; epochs are counted through.

        Where the two have different units, the scores of the first are dropped.
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
