"""Training of a generator against the losses of the frozen float model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.engine import Engine
from onnxq.graph.facts import values_by_name
from onnxq.options.table import AUTO, EngineName
from onnxq.runtime.session import Arrays, Feeds, SessionPool
from onnxq.synthesise.float_student import FloatStudent, StudentTraining
from onnxq.synthesise.generator import LATENT, NOISE, Generator, before_model
from onnxq.synthesise.objective import LOSS, SynthesisObjective, Terms, term_name
from onnxq.train.objective import target_name
from onnxq.train.optimizer import Adam, CosineRestarts, flattened, nested

RATE = 0.02
"""Adam's step at first; DFQF has 0.01, for a wider generator."""


class GeneratorDescent:
    """Trains the parameters of a generator; each shard of a batch has its own statistics.

    Args:
        model: the float model, unfolded.
        generator: generates its input.
        objective: the losses of the images.
        parameters: to start from; they are changed in place.
        seed: of the noise.
        outputs: further tensors of the model to return, see `extras`.
        kernels: whose kernels compute gradients.

    Attributes:
        parameters: the current ones.
        done: steps so far.
        extras: further tensors at the last step, one dict per shard.
    """

    def __init__(
        self,
        model: ir.Model,
        generator: Generator,
        objective: SynthesisObjective,
        parameters: Arrays,
        seed: tuple[int, ...],
        outputs: Sequence[str] = (),
        kernels: EngineName = AUTO,
    ) -> None:
        joined, names = before_model(model, generator)
        self._kinds = objective.kinds
        terms = [term_name(kind) for kind in self._kinds]
        attached = objective.attach(joined)
        found = values_by_name(attached.graph)
        attached.graph.outputs.extend(found[name] for name in outputs)
        self._engine = Engine(attached, names, LOSS, [*terms, *outputs], kernels=kernels)
        self._optimizer, self._seed = Adam(), seed
        self.parameters, self.done = parameters, 0
        self.extras: list[Arrays] = []

    def step(self, size: int, shards: int, rate: float, student: Feeds) -> Terms:
        """Update the parameters by one batch.

        Args:
            size: images per shard.
            shards: shards of the batch.
            rate: Adam's learning rate.
            student: the parameters of the objective's student, by input name.

        Returns:
            The losses before the step, means over the shards.
        """
        rng = np.random.default_rng((*self._seed, self.done))
        feeds = [
            {NOISE: rng.standard_normal((size, LATENT), np.float32), **student}
            for _ in range(shards)
        ]
        _, found = self._engine.gradients(self.parameters, feeds)
        self._optimizer.lr = rate
        share = np.float32(1 / shards)
        self._optimizer.step(self.parameters, {k: share * g for k, g in found.items()})
        self.done += 1
        self.extras = self._engine.extras
        return {
            kind: float(np.mean([outputs[term_name(kind)] for outputs in self.extras]))
            for kind in self._kinds
        }

    def state(self) -> Arrays:
        """The state of the training."""
        groups = {"value": self.parameters, "optimizer": self._optimizer.state()}
        return {"done": np.array(self.done), **flattened(groups)}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore a saved state."""
        self.done, groups = int(state["done"]), nested(state)
        for name, array in self.parameters.items():
            array[...] = groups["value"][name]
        self._optimizer.load_state(groups["optimizer"])


class GeneratorTraining:
    """Trains a generator from random parameters: DFQF, algorithm 1.

    Where the objective has a student, the two are trained in turn, on the images of each step.

    Args:
        model: the float model, unfolded.
        generator: generates its input.
        objective: the losses of the images.
        steps: after so many the learning rate is 0.
        seed: of the parameters and of the noise.
        rate: Adam's initial learning rate.
        kernels: whose kernels compute gradients.
    """

    def __init__(
        self,
        model: ir.Model,
        generator: Generator,
        objective: SynthesisObjective,
        steps: int,
        seed: int,
        rate: float = RATE,
        kernels: EngineName = AUTO,
    ) -> None:
        self._student: StudentTraining | None = None
        self._tensors: list[str] = []
        if isinstance(objective.student, FloatStudent):
            self._student = StudentTraining(model, objective.student, seed, kernels)
            self._tensors = [objective.student.images, objective.student.logits]
        parameters = generator.parameters(np.random.default_rng(seed))
        self._descent = GeneratorDescent(
            model, generator, objective, parameters, (seed,), self._tensors, kernels
        )
        self._rate, self.steps = rate, steps

    @property
    def done(self) -> int:
        """Steps so far."""
        return self._descent.done

    @property
    def parameters(self) -> Arrays:
        """The current parameters of the generator."""
        return self._descent.parameters

    def step(self, size: int, shards: int) -> Terms:
        """Update the generator by one batch, then the student.

        Returns:
            The generator's losses before the step, means over the shards.
        """
        fixed: Arrays = {} if self._student is None else self._student.parameters
        rate = CosineRestarts(self._rate, max(self.steps, 1)).lr(min(self.done, self.steps - 1))
        terms = self._descent.step(size, shards, rate, fixed)
        if self._student is not None:
            images, logits = self._tensors
            extras = self._descent.extras
            self._student.step(
                [{images: each[images], target_name(logits): each[logits]} for each in extras]
            )
        return terms

    def state(self) -> Arrays:
        """The state of the training."""
        own = {"steps": np.array(self.steps), **self._descent.state()}
        return {**own, **({} if self._student is None else self._student.state())}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore a saved state."""
        self.steps = int(state["steps"])
        self._descent.load_state(state)
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
