"""The kinds of quantizer: their integers, and what scale and zero point follow from.

    q = clip(round(x / scale) + zero_point, smallest, largest)
    x is read as scale * (q - zero_point)

rounded half to even, as QuantizeLinear and DequantizeLinear do (Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018, section 2.1).
n is the number of bits. The values of an activation lie in [lowest, lowest + width], those of a
weight in [-T, T], T its threshold (Goncharenko et al., FAT, with the erratum for signed values).

| kind | quantizes | integers | scale | zero point |
|---|---|---|---|---|
| asymmetric | an activation | uint8, 0 to 2^n - 1 | width / (2^n - 1) | round(-lowest / scale) |
| positive | one without negative values | likewise | width / (2^n - 1) | 0 |
| symmetric | one in [-T, T] | likewise | T / (2^(n-1) - 1) | 2^(n-1) |
| weight | a weight, per channel or tensor | int8, +-(2^(n-1) - 1) | T / (2^(n-1) - 1) | 0 |
| bias | the bias of an integer kernel | int32, +-(2^31 - 1) | that of input * weight | 0 |
| codebook | centroids of a weight | int8, +-(2^(n-1) - 1) | fitted with them | 0 |
| float codebook | the same, for float kernels | none | fitted with them | none |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

SMALLEST_WIDTH = 1e-8
"""A tensor that is always zero gets this width: safe to divide by."""


class Range(NamedTuple):
    """The values that a tensor may take: from `lowest` to `lowest + width`, real."""

    lowest: float
    width: float


@dataclass(frozen=True)
class Quantizer:
    """A row of the table at the head of this module.

    Attributes:
        integer: type of the integers; None where values stay float32.
        parameters: names of the real numbers that scale and zero point follow from, the one that
            the scale follows from last; none where the scale is given.
        op_type: of the fake-quant function of an activation, without its number of bits.
    """

    integer: type[np.integer] | None
    parameters: tuple[str, ...] = ()
    op_type: str = ""

    @property
    def has_lowest(self) -> bool:
        """Whether the lowest value is free, so that the zero point follows from the range."""
        return "lowest" in self.parameters

    @property
    def has_threshold(self) -> bool:
        """Whether the range is [-T, T]."""
        return "threshold" in self.parameters

    @property
    def share(self) -> float:
        """What the last parameter is of the width: a threshold is half of it."""
        return 0.5 if self.has_threshold else 1.0

    @property
    def signed(self) -> bool:
        """Whether the integers are."""
        return self.integer is not np.uint8

    @property
    def nbytes(self) -> int:
        """Bytes of a value in the file, before integers of less than 8 bits are packed."""
        return np.dtype(self.integer or np.float32).itemsize

    def largest(self, num_bits: int) -> int:
        """The largest integer of n bits."""
        return int(2 ** (num_bits - self.signed) - 1)

    def steps(self, num_bits: int) -> int:
        """The last parameter divided by the scale."""
        return int(2 ** (num_bits - self.has_threshold) - 1)

    def fixed_zero_point(self, num_bits: int) -> int:
        """The zero point of a kind whose lowest value is not free."""
        return int(2 ** (num_bits - 1)) if self.has_threshold and not self.signed else 0

    def range(self, lowest: float, width: float) -> Range:
        """The range of an activation; `lowest` counts only where it is free."""
        width = max(width, SMALLEST_WIDTH)
        if self.has_lowest:
            return Range(lowest, width)
        return Range(-width / 2 if self.has_threshold else 0.0, width)

    def values(self, values: Range) -> tuple[np.float32, ...]:
        """The parameters of an activation's range, float32, in their order."""
        last = np.float32(values.width) * np.float32(self.share)
        return (np.float32(values.lowest), last) if self.has_lowest else (last,)

    def scale_and_zero_point(self, values: Range, num_bits: int) -> tuple[np.float32, int]:
        """Those of an activation: float32, and an integer that every kind stores as uint8.

        Raises:
            ValueError: the width is not positive.
        """
        if not values.width > 0:
            raise ValueError(f"the width of a range must be positive, found {values.width!r}")
        *lowest, last = self.values(values)
        scale = last / np.float32(self.steps(num_bits))
        if not lowest:
            return scale, self.fixed_zero_point(num_bits)
        return scale, int(np.clip(np.rint(-lowest[0] / scale), 0, self.largest(num_bits)))


Kind = Literal["asymmetric", "positive", "symmetric"]
"""Of an activation's quantizer."""

ACTIVATIONS: dict[Kind, Quantizer] = {
    "asymmetric": Quantizer(np.uint8, ("lowest", "width"), "FakeQuant"),
    "positive": Quantizer(np.uint8, ("width",), "FakeQuantPositive"),
    "symmetric": Quantizer(np.uint8, ("threshold",), "FakeQuantSymmetric"),
}
WEIGHT = Quantizer(np.int8, ("threshold",))
BIAS = Quantizer(np.int32)
CODEBOOK = Quantizer(np.int8)
FLOAT_CODEBOOK = Quantizer(None)
