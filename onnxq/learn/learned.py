"""What learning gives back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from onnxq.rewrite.quantizers import Quantizers

Point = tuple[float, float, float]
"""Seconds of learning, the held-back score and the percentage of equal decisions, or NaN."""


@dataclass
class Course:
    """How a run of training went.

    Attributes:
        start_score: the objective's held-back score before.
        score: the held-back score of what was kept.
        epoch: the epoch that gave it; 0 means that the start was kept.
        history: the held-back score after each epoch.
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
class Learned(Course):
    """What came out of learning.

    Attributes:
        quantizers: the best numbers found, by the held-back score.
    """

    quantizers: Quantizers = field(kw_only=True)

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
