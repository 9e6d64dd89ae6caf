"""Distilled images, batch after batch, as many and as good as the clock allows."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from onnxq.learn.checkpoint import Checkpoint
from onnxq.learn.rows import Rows
from onnxq.progress import Progress
from onnxq.synthesise.distilled import Descent, Distilled
from onnxq.synthesise.history import LossHistory, history_of, loss_text
from onnxq.synthesise.made import MadeImages, Synthesis
from onnxq.synthesise.subject import Subject
from onnxq.synthesise.task import TIMED_STEPS, TOGETHER, Task, batch_size

STEPS = 100
"""Of gradient descent for each batch, where the clock allows."""
LEAST_STEPS = 50
"""Below that there are rather fewer images."""


class Making:
    """Batch after batch of images, as many and as good as the clock allows.

    Args:
        subject: the network.
        task: how many, and how.
        folder: where images lie.
        progress: told how far it is.
        checkpoint: where finished images are kept too; None keeps none.
        resume: whether to go on from those.

    Attributes:
        source: the images.
        synthesis: how they were made.
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
        self._distilled = Distilled(subject.model, space, objective)
        self._size = space.batch or batch_size(subject.model)
        self._count = task.images(space.batch)
        self._rows = Rows(folder, self._count, False, "the made images")
        self._name, self._task, self._progress = space.name, task, progress
        self._checkpoint, self._resume = checkpoint, resume
        self._groups = -(-self._count // (TOGETHER * self._size))
        self._history = LossHistory()
        self._steps_done = 0
        self.source = MadeImages(self._rows, space.batch)
        used = {kind: weights[kind] for kind in objective.kinds}
        self.synthesis = Synthesis("distilled", steps=STEPS, weights=used)

    def run(self) -> None:
        """Make them all."""
        self._began = time.monotonic()
        self._progress.start("images", self._groups * self.synthesis.steps)
        group = 0
        while group < self._groups:
            images = self._kept(group) if self._resume else None
            if images is None:
                images = self._make(group)
            count = min(len(images), self._count - self._rows.stored)
            self._rows.append({self._name: images[:count]}, count)
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
        left = self._count - self._rows.stored
        batches = min(TOGETHER, -(-left // self._size))
        seeds = [(self._task.seed, group * TOGETHER + i) for i in range(batches)]
        return self._distilled.begin(seeds, self._size, self.synthesis.steps)

    def _plan(self, group: int, descent: Descent) -> None:
        """As many steps, then as many images, as the clock still allows."""
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
        stored, steps = self._rows.stored, self.synthesis.steps
        if steps < STEPS or stored < self._count:
            self.synthesis.notes.append(
                f"--max-minutes allowed {steps} of {STEPS} steps for each of {stored} of "
                f"{self._count} images"
            )

    def _remember(self, group: int, found: LossHistory) -> None:
        """The mean over groups of each step's losses, and the time of all."""
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
