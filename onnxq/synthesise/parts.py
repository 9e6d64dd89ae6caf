"""Nodes and constants added to a graph, BatchNormalization in training mode, initial weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from onnxq.graph.editor import add_initializer

AXES_AS_INPUT = 18
"""The opset from which on ReduceMean takes its axes as an input."""


class Parts:
    """Nodes and constants that are added to one graph, under names with a common prefix.

    Args:
        model: gets the constants at once, and the nodes when `finish` or `extend` is called.
        prefix: of all new names.
    """

    def __init__(self, model: ir.Model, prefix: str) -> None:
        self._graph, self._prefix = model.graph, prefix
        self._opset = model.opset_imports.get("", 0)
        self._tape = tape.Tape()
        self._constants = 0

    def op(
        self, op_type: str, *inputs: ir.Value, **attributes: int | float | str | Sequence[int]
    ) -> ir.Value:
        """The output of a new node."""
        return self._tape.op(op_type, list(inputs), dict(attributes))

    def copy(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> Sequence[ir.Value]:
        """The outputs of a copy of a node with these inputs."""
        return self._tape.op_multi_out(
            node.op_type,
            list(inputs),
            dict(node.attributes),
            domain=node.domain,
            num_outputs=len(node.outputs),
        )

    def constant(self, array: np.ndarray, name: str | None = None) -> ir.Value:
        """An initializer, since a Constant node would look like a computed tensor."""
        if name is None:
            name = f"{self._prefix}.constant.{self._constants}"
            self._constants += 1
        return add_initializer(self._graph, name, array)

    def scalar(self, number: float) -> ir.Value:
        """A float32 constant without dimensions."""
        return self.constant(np.array(number, np.float32))

    def integers(self, numbers: Sequence[int]) -> ir.Value:
        """An int64 constant of one dimension."""
        return self.constant(np.array(numbers, np.int64))

    def mean(self, value: ir.Value, axes: Sequence[int] | None, *, keep: bool = False) -> ir.Value:
        """The mean over some axes, or over all."""
        if axes is None:
            return self.op("ReduceMean", value, keepdims=0)
        if self._opset >= AXES_AS_INPUT:
            return self.op("ReduceMean", value, self.integers(axes), keepdims=int(keep))
        return self.op("ReduceMean", value, axes=list(axes), keepdims=int(keep))

    def sum(self, value: ir.Value, axes: Sequence[int] | None) -> ir.Value:
        """The sum over some axes, or over all."""
        given = [] if axes is None else [self.integers(axes)]
        return self.op("ReduceSum", value, *given, keepdims=0)

    def square(self, value: ir.Value) -> ir.Value:
        """The square of each element, by Mul: Pow and its gradient are far slower."""
        return self.op("Mul", value, value)

    def finish(self, outputs: dict[str, ir.Value]) -> None:
        """Add the nodes at the end of the graph, and make these float scalars its outputs."""
        for name, value in outputs.items():
            value.name, value.type = name, ir.TensorType(ir.DataType.FLOAT)
            value.shape = ir.Shape([])
        self.extend()
        self._graph.outputs[:] = list(outputs.values())

    def extend(self) -> None:
        """Add the nodes at the end of the graph."""
        for i, node in enumerate(self._tape.nodes):
            node.name = f"{self._prefix}.{i}"
            for number, output in enumerate(node.outputs):
                output.name = output.name or f"{self._prefix}.{i}.value.{number}"
        self._graph.extend(self._tape.nodes)


@dataclass(frozen=True)
class TrainingNorm:
    """The outputs of a BatchNormalization node in training mode.

    Attributes:
        output: (x - mean) / sqrt(variance + epsilon) * scale + bias.
        mean: of each channel over the batch and all positions, `(1, channels, 1, ...)`.
        variance: likewise, not corrected for the bias of the estimate.
    """

    output: ir.Value
    mean: ir.Value
    variance: ir.Value


def training_norm(
    parts: Parts, node: ir.Node, x: ir.Value, scale: ir.Value, bias: ir.Value
) -> TrainingNorm:
    """Nodes that compute a BatchNormalization node in training mode; its input has a known rank."""
    source = node.inputs[0]
    assert source is not None and source.shape is not None
    rank = len(source.shape)
    others = [axis for axis in range(rank) if axis != 1]
    shape = parts.integers([1, -1, *[1] * (rank - 2)])
    mean = parts.mean(x, others, keep=True)
    shifted = parts.op("Sub", x, mean)
    variance = parts.mean(parts.square(shifted), others, keep=True)
    epsilon = parts.scalar(node.attributes.get_float("epsilon", 1e-5))
    normal = parts.op("Div", shifted, parts.op("Sqrt", parts.op("Add", variance, epsilon)))
    scaled = parts.op("Mul", normal, parts.op("Reshape", scale, shape))
    output = parts.op("Add", scaled, parts.op("Reshape", bias, shape))
    return TrainingNorm(output, mean, variance)


def he_normal(shape: Sequence[int], fan_in: int, rng: np.random.Generator) -> np.ndarray:
    """Normal values of variance 2 / fan_in (He et al. 2015, equation 10), float32.

    Args:
        shape: of the weight.
        fan_in: number of inputs of one output, at least 1.
        rng: the random generator.
    """
    size = np.float32(math.sqrt(2 / fan_in))
    return rng.standard_normal(tuple(shape), np.float32) * size
