"""A node as the rules of the reverse mode see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.engine.builder import Builder
from onnxq.graph import facts


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
        return facts.input_at(self.node, index) is not None

    def rank(self, index: int = 0) -> int | None:
        """The number of dimensions of an input; None where it isn't known."""
        return facts.rank(facts.input_at(self.node, index))

    def dimensions(self, index: int = 0) -> list[int | None]:
        """The sizes of an input; None for a free one, nothing where the rank isn't known."""
        return sizes(facts.input_at(self.node, index))

    def shape(self, index: int = 0) -> tuple[int, ...] | None:
        """The shape of an input; None where a dimension is free or unknown."""
        found = self.dimensions(index)
        known = tuple(size for size in found if size is not None)
        return None if self.rank(index) is None or len(known) < len(found) else known

    def constant(self, index: int) -> np.ndarray | None:
        """The value of a constant input; None where the input is absent or computed."""
        return facts.constant(facts.input_at(self.node, index))

    def integer(self, name: str, default: int) -> int:
        """An attribute."""
        return self.node.attributes.get_int(name, default)

    def integers(self, name: str, default: list[int]) -> list[int]:
        """An attribute."""
        return list(self.node.attributes.get_ints(name, default))

    def number(self, name: str, default: float) -> float:
        """An attribute."""
        return self.node.attributes.get_float(name, default)

    def text(self, name: str, default: str) -> str:
        """An attribute."""
        return self.node.attributes.get_string(name, default)


def sizes(value: ir.Value | None) -> list[int | None]:
    """The sizes of a value; None for a free one, nothing where the rank isn't known."""
    if value is None or value.shape is None:
        return []
    return [size if isinstance(size, int) else None for size in value.shape]


def make_form(node: ir.Node, carrying: set[ir.Value], opset: int) -> Form:
    """The node as the rules see it."""
    wanted = frozenset(i for i, value in enumerate(node.inputs) if value in carrying)
    return Form(node, wanted, opset)


Gradients = dict[int, ir.Value]
"""The gradient of the loss by position of the input; more than are wanted may be given."""


@dataclass(frozen=True)
class Rule:
    """How one operator is differentiated.

    Args:
        write: writes the gradient of one form of the operator.
        refuse: says in a few words why a form has no gradient; None where it has one.
        forward: writes other nodes that compute the same as the node and gives their result;
            where it is absent or gives None, the node stays.
    """

    write: Callable[[Form, Builder], Gradients]
    refuse: Callable[[Form], str | None] = lambda form: None
    forward: Callable[[Form, Builder], ir.Value | None] | None = None


def unknown_rank(form: Form) -> str | None:
    """A refusal where the rank of the first input isn't known."""
    return "the rank of its input is not known" if form.rank() is None else None
