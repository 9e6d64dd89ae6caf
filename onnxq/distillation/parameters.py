"""The constants of a float model that are trained, and their initial values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.graph.facts import constant, input_at, is_op, producer
from onnxq.runtime.session import Arrays
from onnxq.synthesise.parts import he_normal

WEIGHT, BIAS, SCALE = "weight", "bias", "scale"

INPUTS: Mapping[str, Mapping[int, str]] = {
    "Conv": {1: WEIGHT, 2: BIAS},
    "ConvTranspose": {1: WEIGHT, 2: BIAS},
    "Gemm": {0: WEIGHT, 1: WEIGHT, 2: BIAS},
    "MatMul": {0: WEIGHT, 1: WEIGHT},
    "BatchNormalization": {1: SCALE, 2: BIAS},
    "InstanceNormalization": {1: SCALE, 2: BIAS},
    "LayerNormalization": {1: SCALE, 2: BIAS},
}
"""Inputs of a node that are trained where they are constant, and what they are."""


@dataclass(frozen=True)
class Parameter:
    """A trained constant.

    Attributes:
        kind: weight, bias or scale.
        shape: of the array.
        fan_in: of a weight, the number of inputs of one output.
    """

    kind: str
    shape: tuple[int, ...]
    fan_in: int = 1

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """An initial value, float32: He et al. 2015 for a weight, 1 for a scale, 0 for a bias."""
        if self.kind == WEIGHT:
            return he_normal(self.shape, self.fan_in, rng)
        return np.full(self.shape, float(self.kind == SCALE), np.float32)


def find_parameters(model: ir.Model) -> dict[str, Parameter]:
    """The trained constants by the name of the initializer; shared ones once."""
    found: dict[str, Parameter] = {}
    for node in model.graph:
        for index, kind in trained_inputs(node):
            value = node.inputs[index]
            array = constant(value)
            assert value is not None and array is not None
            shape = tuple(array.shape)
            fan_in = _fan_in(node, index, shape) if kind == WEIGHT else 1
            found.setdefault(str(value.name), Parameter(kind, shape, fan_in))
    return found


def trained_inputs(node: ir.Node) -> Iterator[tuple[int, str]]:
    """Positions and kinds of a node's trained constants."""
    kinds = INPUTS[node.op_type] if is_op(node, *INPUTS) else {}
    if is_op(node, "Add") and any(is_op(producer(value), "MatMul") for value in node.inputs):
        kinds = {0: BIAS, 1: BIAS}
    for index, kind in kinds.items():
        value = input_at(node, index)
        array = constant(value) if value is not None and value.is_initializer() else None
        if array is not None and array.dtype == np.float32 and array.size:
            yield index, kind


def draw(parameters: Mapping[str, Parameter], seed: int) -> Arrays:
    """Initial values by name; they depend on seed, order and shapes alone."""
    rng = np.random.default_rng(seed)
    return {name: parameter.draw(rng) for name, parameter in parameters.items()}


def _fan_in(node: ir.Node, index: int, shape: tuple[int, ...]) -> int:
    """The inputs of one output of a Conv, a ConvTranspose or a matrix.

    The weight of a Conv is (out, in / group, ...), that of a ConvTranspose (in, out / group, ...).
    An output of a ConvTranspose is reached by one of every stride taps along each axis.
    """
    taps = int(np.prod(shape[2:], dtype=np.int64))
    if node.op_type == "Conv":
        return max(shape[1] * taps, 1)
    if node.op_type == "ConvTranspose":
        reached = taps // int(np.prod(node.attributes.get_ints("strides", ())))
        return max(shape[0] // node.attributes.get_int("group", 1) * reached, 1)
    if len(shape) < 2:
        return max(shape[0], 1) if shape else 1
    transposed = bool(node.attributes.get_int("transA" if index == 0 else "transB", 0))
    summed = -1 if (index == 0) != transposed else -2
    return max(shape[summed], 1)
