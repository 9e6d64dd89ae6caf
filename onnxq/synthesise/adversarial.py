"""A generator that goes on learning while the student does, against it.

Li et al., DFQF, 2020, algorithm 2: L_G = L_is + beta L_bn + gamma L_adv with L_adv = -L_S
(equations 8 and 9), L_S the cross-entropy of the quantized student to the float network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.learn.sizes import fix_sizes
from onnxq.session import Arrays, Feeds
from onnxq.synthesise.float_student import between
from onnxq.synthesise.generated import GeneratorDescent, draw
from onnxq.synthesise.generating import METADATA_KEY
from onnxq.synthesise.generator import read_back, stand_alone
from onnxq.synthesise.history import LossHistory, history_of, loss_text
from onnxq.synthesise.made import Synthesis
from onnxq.synthesise.quantized_student import QuantizedStudent
from onnxq.synthesise.subject import Subject
from onnxq.synthesise.task import TOGETHER, Task

RATE = 0.005
"""Adam's step."""
WEIGHT = 5.0
"""Of the adversarial loss (the paper's gamma), where no other is given."""
TUNING = 2
"""Tells the seeds of this stage from those of training and of what is drawn after it."""


class AdversarialGenerator:
    """Moves a generator towards images on which student and network differ.

    Args:
        subject: the network.
        task: the weights of the losses, and the seed.
        synthesis: with the generator to begin with; the losses of each step are added to it.
        student: the quantized student, its numbers as inputs.

    Attributes:
        name: of the network's input.

    Raises:
        ModelError: the generator does not hold its parameters, or no gradient passes the student.
    """

    def __init__(
        self, subject: Subject, task: Task, synthesis: Synthesis, student: ir.Model
    ) -> None:
        space, model = subject.space, synthesis.generator
        assert model is not None and subject.logits is not None
        self.name = space.name
        self._generator, parameters = read_back(model, space)
        sample = space.noise(np.random.default_rng(0), space.batch or 1)
        sized = fix_sizes(student, {space.name: sample})
        self._student = QuantizedStudent(sized, space.name, subject.logits)
        objective = subject.objective({"adversarial": WEIGHT, **task.all_weights}, self._student)
        seed = (task.seed, TUNING)
        self._descent = GeneratorDescent(
            subject.model, self._generator, objective, parameters, seed
        )
        self._size = space.batch or int(json.loads(model.metadata_props[METADATA_KEY])["batch"])
        self._opset, self._seed = model.opset_imports[""], seed
        self._history = LossHistory()
        self._synthesis = synthesis

    def learn(self, numbers: Feeds, count: int, late: Callable[[], bool]) -> None:
        """Steps against a student with these numbers, on `count` images, unless it gets late."""
        fixed = self._student.feeds(numbers)
        for _ in range(-(-count // (TOGETHER * self._size))):
            if late():
                return
            self._history.add(self._descent.step(self._size, TOGETHER, RATE, fixed))
            self._synthesis.tuning = self._history.by_kind

    def draw(self, count: int) -> Iterator[np.ndarray]:
        """So many images in batches: the same ones until it learns again."""
        model = stand_alone(self._generator, self._descent.parameters, self._opset)
        seed, batches = (*self._seed, 1, self._descent.done), -(-count // self._size)
        for i, images in enumerate(draw(model, self.name, batches, self._size, seed)):
            yield images[: count - i * self._size]

    def text(self) -> str:
        """The losses before the last step."""
        losses = self._history.losses
        return f"generator {loss_text(losses[-1])}" if losses else ""

    def state(self) -> Arrays:
        """All that later images depend on, and the losses."""
        return {**self._descent.state(), **self._history.arrays()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a saved state."""
        self._descent.load_state(state)
        self._history = history_of(state) if self._descent.done else LossHistory()
        self._synthesis.tuning = self._history.by_kind


def check_adversarial(subject: Subject, generator: ir.Model | None) -> None:
    """Find out before the long work whether a generator could go on learning.

    Args:
        subject: the network.
        generator: a saved one, where there is one.

    Raises:
        ModelError: the network is no classifier or holds other graphs, or the generator does not
            hold its parameters.
    """
    if subject.logits is None:
        raise ModelError(
            "--generator-mode adversarial compares the probabilities of a classifier, and the "
            "model is none (one output of logits); leave it out."
        )
    between(subject.model, subject.space.name, subject.logits)
    if generator is not None:
        read_back(generator, subject.space)
