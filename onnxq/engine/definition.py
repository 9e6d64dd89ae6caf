"""Gradient definitions: dL/d(inputs) of an operator, written as ONNX nodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from onnx_ir import tape
from onnxruntime.capi import _pybind_state

Attribute = int | float | str | list[int]

NO_ATTRIBUTES: Mapping[str, Attribute] = MappingProxyType({})

MICROSOFT = "com.microsoft"
LARGE = 1e30
"""Turns a positive distance into a number that a clip at 1 makes exactly 1."""


@dataclass(frozen=True)
class Step:
    """One node of a definition."""

    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, dict[str, object]]


@dataclass
class Definition:
    """The backward nodes of one wrapped operator, written step by step.

    Args:
        positions: place of each of the operator's inputs among the function's inputs;
            an absent optional input has none.
        opset: version of the default domain in the model.
    """

    positions: dict[int, int]
    opset: int
    steps: list[Step] = field(default_factory=list)
    results: dict[int, str] = field(default_factory=dict)

    def input(self, index: int) -> str:
        """The operator's input."""
        return f"I({self.positions[index]})"

    def output(self) -> str:
        """The operator's output."""
        return "O(0)"

    def gradient(self) -> str:
        """The gradient of the loss with respect to the operator's output."""
        return "GO(0)"

    def op(
        self,
        op_type: str,
        *inputs: str,
        domain: str = "",
        attributes: Mapping[str, Attribute] = NO_ATTRIBUTES,
        **more: Attribute,
    ) -> str:
        """Add a node with one output; returns the output's name."""
        attributes = {**attributes, **more}
        return self.ops(1, op_type, *inputs, domain=domain, attributes=attributes)[0]

    def ops(
        self,
        count: int,
        op_type: str,
        *inputs: str,
        domain: str = "",
        attributes: Mapping[str, Attribute] = NO_ATTRIBUTES,
    ) -> tuple[str, ...]:
        """Add a node with several outputs; returns their names."""
        outputs = tuple(f"t{len(self.steps)}_{i}" for i in range(count))
        encoded = {name: _encode(value) for name, value in attributes.items()}
        self.steps.append(Step(op_type, domain, inputs, outputs, encoded))
        return outputs

    def scalar(self, value: float) -> str:
        """A float32 constant without dimensions."""
        return self._constant({"value": float(value), "dtype": "float", "is_tensor": True})

    def integers(self, values: list[int]) -> str:
        """A one-dimensional int64 constant."""
        return self._constant({"value": values, "dtype": "int", "is_tensor": True})

    def result(self, index: int, name: str) -> None:
        """Set the gradient with respect to the operator's input ``index``."""
        self.results[index] = name

    def reduce(self, op_type: str, x: str, axes: list[int], keepdims: int = 0) -> str:
        """A reduction over some axes, an input from opset 18 on (of ReduceSum from 13 on)."""
        if self.opset >= 18 or op_type == "ReduceSum":
            return self.op(op_type, x, self.integers(axes), keepdims=keepdims)
        return self.op(op_type, x, axes=axes, keepdims=keepdims)

    def total(self, x: str) -> str:
        """The sum of all elements, without dimensions."""
        return self.op("ReduceSum", x, keepdims=0)

    def positive(self, distance: str) -> str:
        """1.0 where ``distance`` > 0 and 0.0 elsewhere.

        This is several times as fast as Greater and Where, since each step is vectorized.
        """
        scaled = self.op("Mul", distance, self.scalar(LARGE))
        return self.op("Clip", scaled, self.scalar(0.0), self.scalar(1.0))

    def finished(self, wanted: set[int]) -> list[Step]:
        """The steps that the gradients of the wanted inputs need, in order."""
        if missing := wanted - self.results.keys():
            raise ValueError(f"no gradient is defined for inputs {sorted(missing)}")
        last = [
            Step("Identity", "", (self.results[i],), (f"GI({self.positions[i]})",), {})
            for i in sorted(wanted)
        ]
        needed = {name for step in last for name in step.inputs}
        kept: list[Step] = []
        for step in reversed(self.steps):
            if needed.intersection(step.outputs):
                kept.append(step)
                needed.update(step.inputs)
        return [*reversed(kept), *last]

    def _constant(self, value: dict[str, object]) -> str:
        output = f"t{len(self.steps)}_0"
        self.steps.append(Step("Constant", "", (), (output,), {"value": value}))
        return output


def register(key: str, steps: list[Step]) -> None:
    """Register a definition with ONNX Runtime; a key that the process knows is left unchanged.

    Args:
        key: ``domain::OpType`` of the function.
        steps: its backward nodes.
    """
    _pybind_state.register_gradient_definition(key, [_node_definition(step) for step in steps])


def _encode(value: Attribute) -> dict[str, object]:
    first = value[0] if isinstance(value, list) else value
    dtype = "string" if isinstance(first, str) else type(first).__name__
    return {"value": value, "dtype": dtype, "is_tensor": False}


def _node_definition(step: Step) -> object:
    definition = _pybind_state.GradientNodeDefinition()
    definition.op_type, definition.domain = step.op_type, step.domain
    definition.inputs, definition.outputs = list(step.inputs), list(step.outputs)
    attributes = []
    for name, encoded in step.attributes.items():
        attribute = _pybind_state.GradientNodeAttributeDefinition()
        attribute.name = name
        attribute.value_json = json.dumps(encoded["value"])
        attribute.dtype = encoded["dtype"]
        attribute.is_tensor = encoded["is_tensor"]
        attributes.append(attribute)
    definition.attributes = attributes
    return definition


@dataclass(frozen=True)
class Form:
    """A node with its attributes, its inputs and the inputs that need a gradient.

    Args:
        node: the node in the model.
        wanted: positions of the inputs that need a gradient.
        opset: version of the default domain.
    """

    node: ir.Node
    wanted: frozenset[int]
    opset: int

    def has(self, index: int) -> bool:
        """Whether an optional input is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def rank(self, index: int) -> int | None:
        """The number of dimensions of an input; None where it isn't known."""
        shape = self._shape(self.node.inputs[index])
        return None if shape is None else len(shape)

    def shape(self, index: int) -> tuple[int, ...] | None:
        """The shape of an input; None where a dimension is free or unknown."""
        return self._static(self.node.inputs[index])

    def dimensions(self, value: ir.Value | None) -> tuple[object, ...] | None:
        """Dimensions of a value, symbolic ones included, for comparing shapes."""
        shape = self._shape(value)
        return None if shape is None else tuple(shape)

    def constant(self, index: int) -> np.ndarray | None:
        """The value of a constant input; None where the input is absent or computed."""
        value = self.node.inputs[index] if self.has(index) else None
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()

    @staticmethod
    def _shape(value: ir.Value | None) -> ir.Shape | None:
        return None if value is None else value.shape

    @classmethod
    def _static(cls, value: ir.Value | None) -> tuple[int, ...] | None:
        shape = cls._shape(value)
        if shape is None or not all(isinstance(d, int) for d in shape):
            return None
        return tuple(d for d in shape if isinstance(d, int))


def make_form(node: ir.Node, carrying: set[ir.Value], opset: int) -> Form:
    """The `Form` of a node."""
    wanted = frozenset(i for i, value in enumerate(node.inputs) if value in carrying)
    return Form(node, wanted, opset)


@dataclass(frozen=True)
class Rule:
    """How one operator is differentiated.

    Args:
        define: writes the gradient of one form of the operator.
        refuse: says in a few words why a form has no gradient; None where it has one.
        forward: writes other nodes that compute the same, given the operator's inputs;
            None keeps the operator.
    """

    define: Callable[[Form, Definition], None]
    refuse: Callable[[Form], str | None] = lambda form: None
    forward: Callable[[Form, tape.Tape, list[ir.Value | None]], ir.Value] | None = None
