"""The losses of made images, step by step, and the time that they took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxq.learn.nested import flattened, nested
from onnxq.session import Arrays


@dataclass
class LossHistory:
    """The losses before each step of gradient descent.

    Its clock runs from when it is made, or from where an earlier run was stopped.

    Attributes:
        losses: unweighted, by kind.
        seconds: when each step began.
    """

    losses: list[dict[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._spent = self.seconds[-1] if self.seconds else 0.0
        self._began = time.perf_counter() - self._spent

    def add(self, losses: Mapping[str, float]) -> None:
        """Take in the losses before a step that is over now."""
        self.losses.append(dict(losses))
        self.seconds.append(self._spent)
        self._spent = time.perf_counter() - self._began

    def joined(self, other: LossHistory, share: float) -> LossHistory:
        """This history and one of other images: mean losses, and the time that both took.

        Steps that one of them does not have are left out.

        Args:
            other: the other one.
            share: its share of all images.
        """
        losses = [
            {kind: (1 - share) * old[kind] + share * new[kind] for kind in new}
            for old, new in zip(self.losses, other.losses, strict=False)
        ]
        seconds = [a + b for a, b in zip(self.seconds, other.seconds, strict=False)]
        return LossHistory(losses, seconds)

    @property
    def by_kind(self) -> dict[str, list[float]]:
        """The losses of each step as one list for each kind."""
        first = (self.losses or [{}])[0]
        return {kind: [float(step[kind]) for step in self.losses] for kind in first}

    @property
    def minutes(self) -> list[float]:
        """When each step began, in minutes."""
        return [second / 60 for second in self.seconds]

    def arrays(self) -> Arrays:
        """All of it, for a checkpoint."""
        losses = {kind: np.array(values) for kind, values in self.by_kind.items()}
        return flattened({"losses": losses, "clock": {"seconds": np.array(self.seconds)}})


def history_of(state: Mapping[str, np.ndarray]) -> LossHistory:
    """What `arrays` was called of, from a checkpoint."""
    groups = nested(state)
    losses = groups["losses"]
    rows = np.stack(list(losses.values()), axis=1)
    steps = [dict(zip(losses, row.tolist(), strict=True)) for row in rows]
    return LossHistory(steps, groups["clock"]["seconds"].tolist())


def loss_text(losses: Mapping[str, float]) -> str:
    """The losses of one step, for progress."""
    return ", ".join(f"{kind} {value:.3f}" for kind, value in losses.items())
