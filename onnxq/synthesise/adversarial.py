"""A generator that is trained on against the quantized student while that is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.graph.cut import ancestors
from onnxq.graph.facts import constant, has_subgraph, values_by_name
from onnxq.runtime.session import Arrays, Feeds
from onnxq.synthesise.distilled import LossHistory, history_of, loss_text
from onnxq.synthesise.float_student import PREFIX, between
from onnxq.synthesise.generated import GeneratorDescent, draw
from onnxq.synthesise.generator import METADATA_KEY, read_back, stand_alone
from onnxq.synthesise.images import Synthesis
from onnxq.synthesise.parts import Parts
from onnxq.synthesise.subject import TOGETHER, Subject, Task
from onnxq.train.budget import fix_sizes


@dataclass(frozen=True)
class QuantizedStudent:
    """A student with fake-quantized tensors, inserted into the graph of another model.

    Gradients pass its rounding straight through, as in its own training.

    Attributes:
        model: the student; its quantization parameters are graph inputs.
        images: the input that takes the images.
        logits: the tensor to compare.
    """

    model: ir.Model
    images: str
    logits: str

    def feeds(self, parameters: Feeds) -> Arrays:
        """The student's quantization parameters, by the names of `inputs`."""
        return {f"{PREFIX}.{name}": array for name, array in parameters.items()}

    def inputs(self) -> dict[str, ir.Value]:
        """The graph inputs of its quantization parameters."""
        found = [value for value in self.model.graph.inputs if value.name != self.images]
        names = [f"{PREFIX}.{value.name}" for value in found]
        return {n: ir.val(n, v.dtype, v.shape) for n, v in zip(names, found, strict=True)}

    def attach(self, parts: Parts, model: ir.Model, inputs: Mapping[str, ir.Value]) -> ir.Value:
        """Copies, in another graph, of all nodes that the logits need.

        Args:
            parts: takes the nodes.
            model: the other model, which gets the student's functions; it holds the images.
            inputs: of the quantization parameters.

        Returns:
            The student's logits.

        Raises:
            ModelError: one of the nodes has a sub-graph.
        """
        values = values_by_name(model.graph)
        copies = {
            v: values[self.images] if v.name == self.images else inputs[f"{PREFIX}.{v.name}"]
            for v in self.model.graph.inputs
        }
        logits = values_by_name(self.model.graph)[self.logits]
        for node in _needed(self.model, logits):
            read = [_read(parts, value, copies) for value in node.inputs]
            for old, made in zip(node.outputs, parts.copy(node, read), strict=True):
                made.type, made.shape = old.type, old.shape
                copies[old] = made
        model.functions.update(self.model.functions)
        model.graph.opset_imports.update(self.model.graph.opset_imports)
        return copies[logits]


def _needed(model: ir.Model, logits: ir.Value) -> list[ir.Node]:
    """The nodes that a value depends on, in graph order."""
    wanted = ancestors(model.graph, [logits])
    found = [node for node in model.graph if not wanted.isdisjoint(node.outputs)]
    for node in found:
        if has_subgraph(node):
            raise ModelError(
                f"The node '{node.name}' ({node.op_type}) has a sub-graph, so the generator can't "
                "be trained against it; leave out --generator-mode adversarial."
            )
    return found


def _read(
    parts: Parts, value: ir.Value | None, copies: dict[ir.Value, ir.Value]
) -> ir.Value | None:
    """The input of a copied node: another copy, or a constant that is created when first read."""
    if value is None:
        return None
    if value not in copies:
        array = constant(value)
        assert array is not None
        copies[value] = parts.constant(array)
    return copies[value]


RATE = 0.005
"""Adam's step."""
WEIGHT = 5.0
"""Of the adversarial loss (the paper's gamma), where no other is given."""
TUNING = 2
"""Keeps the seeds of this stage apart from those of other stages."""


class AdversarialGenerator:
    """Trains a generator towards images on which student and teacher differ.

    Args:
        subject: the float model.
        task: the weights of the losses, and the seed.
        synthesis: holds the generator to start from; the losses of each step are added to it.
        student: the quantized student, with its quantization parameters as inputs.

    Attributes:
        name: of the model's input.

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
            subject.model, self._generator, objective, parameters, seed, kernels=task.engine
        )
        self._size = space.batch or int(json.loads(model.metadata_props[METADATA_KEY])["batch"])
        self._opset, self._seed = model.opset_imports[""], seed
        self._history = LossHistory()
        self._synthesis = synthesis

    def learn(self, feeds: Feeds, count: int, late: Callable[[], bool]) -> None:
        """Train on `count` images against a student with these parameters, unless time runs out."""
        fixed = self._student.feeds(feeds)
        for _ in range(-(-count // (TOGETHER * self._size))):
            if late():
                return
            self._history.add(self._descent.step(self._size, TOGETHER, RATE, fixed))
            self._synthesis.tuning = self._history.by_kind

    def draw(self, count: int) -> Iterator[np.ndarray]:
        """So many images in batches; the same ones until `learn` is called again."""
        model = stand_alone(self._generator, self._descent.parameters, self._opset)
        seed, batches = (*self._seed, 1, self._descent.done), -(-count // self._size)
        for i, images in enumerate(draw(model, self.name, batches, self._size, seed)):
            yield images[: count - i * self._size]

    def text(self) -> str:
        """The losses before the last step, for progress."""
        losses = self._history.losses
        return f"generator {loss_text(losses[-1])}" if losses else ""

    def state(self) -> Arrays:
        """The state of the training, and the losses."""
        return {**self._descent.state(), **self._history.arrays()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore a saved state."""
        self._descent.load_state(state)
        self._history = history_of(state) if self._descent.done else LossHistory()
        self._synthesis.tuning = self._history.by_kind


def check_adversarial(subject: Subject, generator: ir.Model | None) -> None:
    """Check before the long work whether a generator could be trained against a student.

    Args:
        subject: the float model.
        generator: a saved one; None where it is trained anew.

    Raises:
        ModelError: the model is no classifier or has sub-graphs, or the generator does not hold its
            parameters.
    """
    if subject.logits is None:
        raise ModelError(
            "--generator-mode adversarial compares the probabilities of a classifier, and the "
            "model is none (one output of logits); leave it out."
        )
    between(subject.model, subject.space.name, subject.logits)
    if generator is not None:
        read_back(generator, subject.space)
