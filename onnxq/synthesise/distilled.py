"""Distilled images: batches of images that are optimized themselves, and their losses."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onnxq.progress import Progress
from onnxq.runtime.dataset import Stored
from onnxq.runtime.session import Arrays
from onnxq.synthesise.images import Synthesis
from onnxq.synthesise.objective import Descent, Distilled
from onnxq.synthesise.subject import TIMED_STEPS, TOGETHER, Subject, Task, batch_size
from onnxq.train.checkpoint import Checkpoint
from onnxq.train.optimizer import flattened, nested


@dataclass
class LossHistory:
    """The losses before each step of gradient descent.

    Its clock starts when it is created, or continues that of a stopped run.

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
        """Add the losses from before the step that has just ended."""
        self.losses.append(dict(losses))
        self.seconds.append(self._spent)
        self._spent = time.perf_counter() - self._began

    def joined(self, other: LossHistory, share: float) -> LossHistory:
        """This history joined with that of other images: mean losses, and the time of both.

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
        """The losses of each step, as one list for each kind."""
        first = (self.losses or [{}])[0]
        return {kind: [float(step[kind]) for step in self.losses] for kind in first}

    @property
    def minutes(self) -> list[float]:
        """When each step began, in minutes."""
        return [second / 60 for second in self.seconds]

    def arrays(self) -> Arrays:
        """The history as arrays for a checkpoint."""
        losses = {kind: np.array(values) for kind, values in self.by_kind.items()}
        return flattened({"losses": losses, "clock": {"seconds": np.array(self.seconds)}})


def history_of(state: Mapping[str, np.ndarray]) -> LossHistory:
    """The inverse of `LossHistory.arrays`."""
    groups = nested(state)
    losses = groups["losses"]
    rows = np.stack(list(losses.values()), axis=1)
    steps = [dict(zip(losses, row.tolist(), strict=True)) for row in rows]
    return LossHistory(steps, groups["clock"]["seconds"].tolist())


def loss_text(losses: Mapping[str, float]) -> str:
    """The losses of one step, for progress."""
    return ", ".join(f"{kind} {value:.3f}" for kind, value in losses.items())


STEPS = 100
"""Of gradient descent for each batch, where the clock allows."""
LEAST_STEPS = 50
"""Below that there are rather fewer images."""


class DistilledSynthesis:
    """Generates images batch after batch, with as many steps and images as the time allows.

    Args:
        subject: the float model.
        task: how many images, and how.
        folder: for the images.
        progress: told how far it is.
        checkpoint: keeps finished images too; None keeps none.
        resume: whether to resume from the checkpoint.

    Attributes:
        images: the images, on disk.
        synthesis: how they were generated.
    """

    def __init__(
        self,
        subject: Subject,
        task: Task,
        folder: Path,
        progress: Progress,
        checkpoint: Checkpoint | None,
        resume: bool,
    ) -> None:
        space = subject.space
        weights = task.all_weights
        objective = subject.objective(weights)
        self._distilled = Distilled(subject.model, space, objective, kernels=task.engine)
        self._size = space.batch or batch_size(subject.model)
        self._count = task.images(space.batch)
        self.images = Stored(folder, None, "the synthetic images")
        self._name, self._task, self._progress = space.name, task, progress
        self._checkpoint, self._resume = checkpoint, resume
        self._groups = -(-self._count // (TOGETHER * self._size))
        self._history = LossHistory()
        self._steps_done = 0
        used = {kind: weights[kind] for kind in objective.kinds}
        self.synthesis = Synthesis("distilled", steps=STEPS, weights=used)

    def run(self) -> None:
        """Generate all images."""
        self._began = time.monotonic()
        self._progress.start("images", self._groups * self.synthesis.steps)
        group = 0
        while group < self._groups:
            images = self._kept(group) if self._resume else None
            if images is None:
                images = self._make(group)
            count = min(len(images), self._count - len(self.images))
            self.images.append({self._name: images[:count]}, count)
            group += 1
        self._progress.finish()
        self.synthesis.losses = self._history.by_kind
        self.synthesis.minutes = self._history.minutes
        self._say_what_the_clock_did()

    def _make(self, group: int) -> np.ndarray:
        """The images of one group."""
        descent = self._begin(group)
        found = LossHistory()
        while descent.done < descent.steps:
            found.add(descent.step())
            self._steps_done += 1
            if descent.done == TIMED_STEPS:
                self._plan(group, descent)
            steps = self.synthesis.steps
            done = group * steps + min(descent.done, steps)
            self._progress.at(done, loss_text(found.losses[-1]))
        self._remember(group, found)
        images: np.ndarray = np.concatenate(descent.batches)
        self._keep(group, images)
        return images

    def _begin(self, group: int) -> Descent:
        left = self._count - len(self.images)
        batches = min(TOGETHER, -(-left // self._size))
        seeds = [(self._task.seed, group * TOGETHER + i) for i in range(batches)]
        return self._distilled.begin(seeds, self._size, self.synthesis.steps)

    def _plan(self, group: int, descent: Descent) -> None:
        """Reduce the steps, then the images, to what the time still allows."""
        spent = time.monotonic() - self._began
        each = spent / self._steps_done
        possible = descent.done + int(max(0.0, self._task.max_seconds - spent) / max(each, 1e-6))
        groups, steps = self._groups - group, self.synthesis.steps
        if possible >= steps * groups:
            return
        steps = max(LEAST_STEPS, possible // groups)
        self._groups = group + max(1, min(groups, possible // steps))
        self.synthesis.steps = descent.steps = steps
        self._progress.start("images", self._groups * steps)

    def _say_what_the_clock_did(self) -> None:
        stored, steps = len(self.images), self.synthesis.steps
        if steps < STEPS or stored < self._count:
            self.synthesis.notes.append(
                f"--max-minutes allowed {steps} of {STEPS} steps for each of {stored} of "
                f"{self._count} images"
            )

    def _remember(self, group: int, found: LossHistory) -> None:
        """Add a group's losses to the mean over groups."""
        first = group == 0
        self._history = found if first else self._history.joined(found, 1 / (group + 1))

    def _keep(self, group: int, images: np.ndarray) -> None:
        if self._checkpoint is not None:
            state = {"images": images, "plan": np.array([self.synthesis.steps, self._groups])}
            part = self._checkpoint.part(f"images-{group}")
            part.save({**state, **self._history.arrays()})

    def _kept(self, group: int) -> np.ndarray | None:
        """The images of a group that an earlier run has finished."""
        state = self._checkpoint.part(f"images-{group}").load() if self._checkpoint else None
        if state is None:
            return None
        self.synthesis.steps, self._groups = (int(each) for each in state["plan"])
        self._history = history_of(state)
        return state["images"]
