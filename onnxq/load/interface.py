"""The interface of a model: inputs for samples, and the ports that its file declares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.data.arrays import InputSpec
from onnxq.errors import ModelError
from onnxq.load.float_types import original_inputs
from onnxq.runtime.session import Arrays

MOST_ELEMENTS = 2**28
"""Most elements of an input to draw random values for."""

_FREE_SIZE = 32
"""The size of a free dimension that is not the batch, in random feeds."""


def input_specs(model: ir.Model) -> list[InputSpec]:
    """Name, dtype and shape of each graph input that is not an initializer.

    Raises:
        ModelError: an input is not a tensor of known element type and rank.
    """
    initializers = model.graph.initializers
    original = original_inputs(model)
    values = (value for value in model.graph.inputs if value.name not in initializers)
    return [_input_spec(value, original.get(str(value.name))) for value in values]


def random_feeds(specs: Sequence[InputSpec], batch: int, seed: int = 0) -> Arrays:
    """Normally distributed floats, zeros and ones for the other dtypes."""
    generator = np.random.default_rng(seed)
    feeds: Arrays = {}
    for spec in specs:
        sizes = [batch if i == 0 else _FREE_SIZE for i in range(len(spec.shape))]
        shape = [fixed or free for fixed, free in zip(spec.shape, sizes, strict=True)]
        if math.prod(shape) > MOST_ELEMENTS:
            raise ModelError(
                f'The input "{spec.name}" has the shape {spec}, of more than {MOST_ELEMENTS:,} '
                "elements; export the model with the shape of one sample."
            )
        if np.issubdtype(spec.dtype, np.floating):
            feeds[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
        else:
            feeds[spec.name] = generator.integers(0, 2, shape).astype(spec.dtype)
    return feeds


def _input_spec(value: ir.Value, original: np.dtype | None) -> InputSpec:
    if not isinstance(value.type, ir.TensorType) or value.shape is None:
        raise ModelError(
            f'The input "{value.name}" is of type "{value.type}" with shape "{value.shape}", '
            "where a tensor of known rank is expected; "
            "export the model with its input shapes (a dimension may be free)."
        )
    shape = tuple(_size(dim) for dim in value.shape)
    return InputSpec(str(value.name), np.dtype(value.type.dtype.numpy()), shape, original)


def _size(dim: int | ir.SymbolicDim) -> int | None:
    # Some exporters write a free dimension as 0 or -1.
    return dim if isinstance(dim, int) and dim > 0 else None


_KEY = "onnxq.interface"
"""Where a loaded model carries its interface; a clone of it has none."""


@dataclass(frozen=True)
class Port:
    """One graph input or output.

    Attributes:
        name: its name.
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
    """Record the model's current inputs and outputs, before anything is changed."""
    graph = model.graph
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    model.meta[_KEY] = Interface(_ports(inputs), _ports(graph.outputs))


def interface_of(model: ir.Model) -> Interface:
    """The inputs and outputs of a loaded model, as its file declares them."""
    interface = model.meta[_KEY]
    assert isinstance(interface, Interface)
    return interface


def _ports(values: Sequence[ir.Value]) -> tuple[Port, ...]:
    return tuple(
        Port(str(value.name), value.type, None if value.shape is None else value.shape.copy())
        for value in values
    )
