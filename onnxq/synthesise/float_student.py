"""The student that a generator is warmed up against: the same architecture with random weights.

Li et al., DFQF, 2020, algorithm 1. Its BatchNormalization always uses batch statistics, written as
means and differences, so it keeps no running ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.engine import Engine
from onnxq.errors import ModelError
from onnxq.graph.cut import ancestors, dependents
from onnxq.graph.facts import has_subgraph, input_at, is_op, reads, values_by_name
from onnxq.graph.scaled_weight import weight_array
from onnxq.options.table import AUTO, EngineName
from onnxq.runtime.session import Arrays, Feeds
from onnxq.synthesise.objective import cross_entropy
from onnxq.synthesise.parts import Parts, he_normal, training_norm
from onnxq.train.objective import target_name
from onnxq.train.optimizer import Adam, flattened, nested

PREFIX = "onnxq.student"
"""What the names of parameters and nodes begin with."""
LOSS = f"{PREFIX}.loss"

RATE = 1e-3
"""Adam's step."""
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class FloatStudent:
    """The parameters of a student with the model's own architecture.

    Attributes:
        images: the tensor that takes the images.
        logits: the tensor to compare.
        parameters: shape and initial value of each parameter, by its graph input: 'scale' is 1,
            'bias' 0, and 'weight' random by its number of inputs.
    """

    images: str
    logits: str
    parameters: Mapping[str, tuple[tuple[int, ...], str]]

    def draw(self, rng: np.random.Generator) -> Arrays:
        """Initial values: He et al. 2015 for weights."""
        found: Arrays = {}
        for name, (shape, kind) in self.parameters.items():
            if kind == "weight":
                fan_in = math.prod(shape[1:]) if len(shape) > 2 else max(shape)
                found[name] = he_normal(shape, fan_in, rng)
            else:
                found[name] = np.full(shape, float(kind == "scale"), np.float32)
        return found

    def inputs(self) -> dict[str, ir.Value]:
        """The graph inputs of the parameters."""
        kind = ir.DataType.FLOAT
        return {
            name: ir.val(name, kind, ir.Shape(list(shape)))
            for name, (shape, _) in self.parameters.items()
        }

    def attach(self, parts: Parts, model: ir.Model, inputs: Mapping[str, ir.Value]) -> ir.Value:
        """Copies, in the same graph, of the nodes from images to logits.

        Args:
            parts: takes the nodes.
            model: the float model, maybe with a generator before its images.
            inputs: of the parameters.

        Returns:
            The student's logits.
        """
        values = values_by_name(model.graph)
        copies: dict[ir.Value, ir.Value] = {values[self.images]: values[self.images]}
        for node in between(model, self.images, self.logits):
            if is_op(node, "BatchNormalization"):
                x, scale, bias = (_read(value, copies, inputs) for value in node.inputs[:3])
                assert x is not None and scale is not None and bias is not None
                copies[node.outputs[0]] = training_norm(parts, node, x, scale, bias).output
                continue
            read = [_read(value, copies, inputs) for value in node.inputs]
            made = parts.copy(node, read)
            copies |= dict(zip(node.outputs, made, strict=True))
        return copies[values[self.logits]]


def find_float_student(model: ir.Model, images: str, logits: str) -> FloatStudent:
    """The parameters of a student with the model's own architecture.

    Raises:
        ModelError: nodes between images and logits have sub-graphs.
    """
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for node in between(model, images, logits):
        norm = is_op(node, "BatchNormalization")
        if not norm and node.op_type not in WEIGHTED:
            continue
        for index, kind in ((1, "scale" if norm else "weight"), (2, "bias")):
            value = input_at(node, index)
            array = weight_array(value)
            if value is not None and array is not None:
                found[f"{PREFIX}.{value.name}"] = array.shape, kind
    return FloatStudent(images, logits, found)


def between(model: ir.Model, images: str, logits: str) -> list[ir.Node]:
    """The nodes between two tensors, in graph order.

    Raises:
        ModelError: one of them has a sub-graph.
    """
    graph, values = model.graph, values_by_name(model.graph)
    reached = dependents(graph, [values[images]])
    wanted = ancestors(graph, [values[logits]])
    kept = [
        node
        for node in graph
        if not reached.isdisjoint(reads(node)) and not wanted.isdisjoint(node.outputs)
    ]
    for node in kept:
        if has_subgraph(node):
            raise ModelError(
                f"The node '{node.name}' ({node.op_type}) has a sub-graph, so no student can be "
                "made of it; leave out --synthesis-loss adversarial and --generator-mode "
                "adversarial."
            )
    return kept


class StudentTraining:
    """Trains the student to match the teacher's probabilities (equation 2).

    Args:
        model: the float model, unfolded.
        student: its parameters.
        seed: of the weights.
        kernels: whose kernels compute gradients.
    """

    def __init__(
        self, model: ir.Model, student: FloatStudent, seed: int, kernels: EngineName = AUTO
    ) -> None:
        copy = model.clone(deep_copy=False)
        inputs, parts = student.inputs(), Parts(copy, PREFIX)
        copy.graph.inputs.extend(inputs.values())
        logits = student.attach(parts, copy, inputs)
        target = ir.val(target_name(student.logits), ir.DataType.FLOAT)
        copy.graph.inputs.append(target)
        parts.finish({LOSS: cross_entropy(parts, logits, target)})
        self._engine = Engine(copy, list(inputs), LOSS, kernels=kernels)
        self.parameters = student.draw(np.random.default_rng(seed))
        self.optimizer = Adam(RATE)

    def step(self, shards: list[Feeds]) -> float:
        """Train on one batch of images with their targets; returns the loss before the step."""
        loss, gradients = self._engine.gradients(self.parameters, shards)
        share = np.float32(1 / len(shards))
        self.optimizer.step(self.parameters, {k: share * g for k, g in gradients.items()})
        return loss / len(shards)

    def state(self) -> Arrays:
        """The state of the training."""
        optimizer = self.optimizer.state()
        return flattened({"student": self.parameters, "student-optimizer": optimizer})

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore a saved state."""
        groups = nested(state)
        self.parameters = groups["student"]
        self.optimizer.load_state(groups["student-optimizer"])


def _read(
    value: ir.Value | None, copies: Mapping[ir.Value, ir.Value], inputs: Mapping[str, ir.Value]
) -> ir.Value | None:
    if value is None:
        return None
    return inputs.get(f"{PREFIX}.{value.name}") or copies.get(value, value)
