"""One operator as it stands in a model: what a gradient definition may depend on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


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

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_int()

    def real(self, name: str, default: float) -> float:
        """A float attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_float()

    def string(self, name: str, default: str) -> str:
        """A string attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_string()

    def integers(self, name: str, default: list[int]) -> list[int]:
        """A list attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else list(attribute.as_ints())

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
    """The node as the rules see it."""
    wanted = frozenset(i for i, value in enumerate(node.inputs) if value in carrying)
    return Form(node, wanted, opset)
