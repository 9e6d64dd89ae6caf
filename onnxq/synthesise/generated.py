"""A generator trained against the losses of the frozen network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from onnxq.learn.engine import Engine
from onnxq.learn.loss import target_name
from onnxq.learn.nested import flattened, nested
from onnxq.learn.optimizer import Adam
from onnxq.learn.schedule import CosineRestarts
from onnxq.session import Arrays, SessionPool
from onnxq.synthesise.distilled import Terms
from onnxq.synthesise.float_student import StudentTraining
from onnxq.synthesise.generator import LATENT, NOISE, Generator, before_model
from onnxq.synthesise.objective import LOSS, SynthesisObjective, term_name

RATE = 0.01
"""Adam's step at first (DFQF)."""


class GeneratorTraining:
    """Moves the parameters of a generator; each part of a batch has statistics of its own.

    Where the objective has a student, it learns on the images of each step, after the step: both
    in turn (DFQF, algorithm 1).

    Args:
        model: the float network, unfolded.
        generator: what makes its input.
        objective: what makes images good.
        steps: how many the rate takes to fall to 0.
        seed: of the parameters and of the noise.
        rate: Adam's first step.
    """

    def __init__(
        self,
        model: ir.Model,
        generator: Generator,
        objective: SynthesisObjective,
        steps: int,
        seed: int,
        rate: float = RATE,
    ) -> None:
        joined, names = before_model(model, generator)
        self._kinds = objective.kinds
        terms = [term_name(kind) for kind in self._kinds]
        attached = objective.attach(joined, generator.space.name)
        self._student: StudentTraining | None = None
        self._tensors: list[str] = []
        if objective.student is not None:
            self._student = StudentTraining(model, objective.student, seed)
            self._tensors = [objective.student.images, objective.student.logits]
            found = {v.name: v for node in attached.graph for v in node.outputs}
            attached.graph.outputs.extend(found[name] for name in self._tensors)
        self._engine = Engine(attached, names, LOSS, [*terms, *self._tensors])
        self._optimizer, self._rate, self._seed = Adam(rate), rate, seed
        self.parameters = generator.parameters(np.random.default_rng(seed))
        self.steps, self.done = steps, 0

    def step(self, size: int, shards: int) -> Terms:
        """Move the parameters by one batch.

        Returns:
            The losses before, means over the shards.
        """
        rng = np.random.default_rng((self._seed, self.done))
        fixed: Arrays = {} if self._student is None else self._student.parameters
        feeds = [
            {NOISE: rng.standard_normal((size, LATENT), np.float32), **fixed} for _ in range(shards)
        ]
        _, found = self._engine.gradients(self.parameters, feeds)
        schedule = CosineRestarts(self._rate, max(self.steps, 1))
        self._optimizer.lr = schedule.lr(min(self.done, self.steps - 1))
        share = np.float32(1 / shards)
        self._optimizer.step(self.parameters, {k: share * g for k, g in found.items()})
        self.done += 1
        extras = self._engine.extras
        if self._student is not None:
            images, logits = self._tensors
            self._student.step(
                [{images: each[images], target_name(logits): each[logits]} for each in extras]
            )
        return {
            kind: float(np.mean([outputs[term_name(kind)] for outputs in extras]))
            for kind in self._kinds
        }

    def state(self) -> Arrays:
        """All that a later step depends on."""
        plan = {"plan": np.array([self.steps, self.done])}
        own = flattened({"value": self.parameters, "optimizer": self._optimizer.state()})
        return {**plan, **own, **({} if self._student is None else self._student.state())}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a saved state."""
        self.steps, self.done = (int(each) for each in state["plan"])
        groups = nested(state)
        for name, array in self.parameters.items():
            array[...] = groups["value"][name]
        self._optimizer.load_state(groups["optimizer"])
        if self._student is not None:
            self._student.load_state(state)


def draw(
    model: ir.Model, name: str, batches: int, size: int, seed: tuple[int, ...]
) -> Iterator[np.ndarray]:
    """Images of a stand-alone generator, batch after batch."""
    noise = (
        {NOISE: np.random.default_rng((*seed, i)).standard_normal((size, LATENT), np.float32)}
        for i in range(batches)
    )
    for outputs in SessionPool(model, [name]).map(noise):
        yield outputs[name]
