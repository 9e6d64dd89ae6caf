"""What the inputs of a model look like."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxq.data.inputs import InputSpec
from onnxq.errors import ModelError
from onnxq.load.float_types import original_inputs
from onnxq.session import Arrays

MOST_ELEMENTS = 2**28
"""Elements of an input that random values are made for."""

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
