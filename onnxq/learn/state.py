"""Where a run of learning stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxq.learn.learned import Point
from onnxq.session import Arrays

DECAY = 0.95
"""Of the mean loss that is shown."""


@dataclass
class State:
    """What a later step depends on besides the values and the optimizer.

    Attributes:
        epochs: passes over the samples in all.
        epoch: those that are over.
        step: steps of this epoch that are over.
        rate: factor of the learning rate.
        since: the epoch that the schedule counts from.
        loss: running mean over the last steps.
        history: the held-back score after each epoch.
        curve: seconds, score and agreement at the end of each epoch, see `Learned`.
    """

    epochs: int
    epoch: int = 0
    step: int = 0
    rate: float = 1.0
    since: int = 0
    loss: float = float("nan")
    history: list[float] = field(default_factory=list)
    curve: list[Point] = field(default_factory=list)

    def add_loss(self, loss: float) -> None:
        """Take in the loss of one step."""
        first = self.step == 0 or np.isnan(self.loss)
        self.loss = loss if first else DECAY * self.loss + (1 - DECAY) * loss

    def arrays(self) -> Arrays:
        """All of it, for a checkpoint."""
        numbers = [self.epochs, self.epoch, self.step, self.rate, self.since, self.loss]
        curve = np.array(self.curve).reshape(-1, 3)
        return {"numbers": np.array(numbers), "history": np.array(self.history), "curve": curve}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Put back what `arrays` gave."""
        epochs, epoch, step, rate, since, loss = arrays["numbers"].tolist()
        self.epochs, self.epoch, self.step = int(epochs), int(epoch), int(step)
        self.rate, self.since, self.loss = float(rate), int(since), float(loss)
        self.history = arrays["history"].tolist()
        self.curve = [tuple(point) for point in arrays["curve"].tolist()]
