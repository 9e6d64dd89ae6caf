"""What a model takes and gives, as its file declares it, whatever becomes of it inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

_KEY = "onnxq.interface"
"""Where a loaded model carries its interface; a clone of it has none."""


@dataclass(frozen=True)
class Port:
    """One graph input or output.

    Attributes:
        name: its own.
        type: element type and kind; None where the file does not say.
        shape: sizes and names of the dimensions; None where the file does not say.
    """

    name: str
    type: ir.TypeProtocol | None
    shape: ir.Shape | None


@dataclass(frozen=True)
class Interface:
    """Graph inputs and outputs, in order.

    Attributes:
        inputs: those that are not initializers.
        outputs: all of them.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def note_interface(model: ir.Model) -> None:
    """Write down what the model takes and gives now, before anything inside is changed."""
    graph = model.graph
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    model.meta[_KEY] = Interface(_ports(inputs), _ports(graph.outputs))


def interface_of(model: ir.Model) -> Interface:
    """What a model that `load_model` gave takes and gives according to its file."""
    interface = model.meta[_KEY]
    assert isinstance(interface, Interface)
    return interface


def _ports(values: Sequence[ir.Value]) -> tuple[Port, ...]:
    return tuple(
        Port(str(value.name), value.type, None if value.shape is None else value.shape.copy())
        for value in values
    )
