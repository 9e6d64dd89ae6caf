"""Name, dtype and shape of a model's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class InputSpec:
    """Name, dtype and shape of one model input.

    Attributes:
        name: the graph input's name.
        dtype: the element type of the arrays fed.
        shape: one entry per dimension; None is a free one. A free first dimension is the batch.
        original_dtype: the type in the model's file, where that is a float of another width.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...]
    original_dtype: np.dtype | None = None

    @property
    def is_float(self) -> bool:
        """Whether it takes floats of any width, bfloat16 among them."""
        return is_float(self.dtype)

    def takes(self, dtype: np.dtype) -> bool:
        """Whether arrays of this dtype are accepted: floats of 16 and 32 bits are converted."""
        # numpy takes None for float64.
        original = self.dtype if self.original_dtype is None else self.original_dtype
        if dtype in (self.dtype, original):
            return True
        return self.is_float and is_float(dtype) and dtype.itemsize <= 4

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether an array of this shape can be fed."""
        return len(shape) == len(self.shape) and all(
            want is None or want == found for want, found in zip(self.shape, shape, strict=True)
        )

    def fits_sample(self, shape: Sequence[int]) -> bool:
        """Whether an array of this shape holds rows of samples, however many."""
        return InputSpec(self.name, self.dtype, (None, *self.shape[1:])).fits(shape)

    def __str__(self) -> str:
        """The dtype and shape as a user reads them: `float32 (N, 3, ?, ?)`."""
        dims = [str(dim) if dim is not None else "?" for dim in self.shape]
        if self.shape and self.shape[0] is None:
            dims[0] = "N"
        return f"{(self.original_dtype or self.dtype).name} {shape_text(dims)}"


def is_float(dtype: np.dtype) -> bool:
    """Whether the dtype is a float, bfloat16 among them, which numpy does not know as one."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def shape_text(dims: Sequence[object]) -> str:
    """Dimensions in brackets, as Python prints a tuple."""
    return f"({', '.join(str(dim) for dim in dims)}{',' if len(dims) == 1 else ''})"


def fixed_batch(inputs: Sequence[InputSpec]) -> int | None:
    """The batch size that all inputs fix in their first dimension; None if there is none."""
    sizes = {spec.shape[0] if spec.shape else None for spec in inputs}
    return sizes.pop() if len(sizes) == 1 else None


def has_sample_axis(inputs: Sequence[InputSpec]) -> bool:
    """Whether the first dimension of every input can be the axis of samples.

    It can't where an input is a scalar or a state of its own length. Nor where all inputs are
    vectors: a free length there is that of a sequence.
    """
    sizes = {spec.shape[0] if spec.shape else -1 for spec in inputs}
    return len(sizes) == 1 and -1 not in sizes and any(len(s.shape) > 1 for s in inputs)
