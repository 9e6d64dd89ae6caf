"""The kinds of quantizer; weights and biases as integers and back.

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
import numpy.typing as npt

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


FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int8]

SMALLEST_SCALE = np.float32(1e-10)
"""A dead tensor or channel gets this scale: small, but safe to divide by."""

BIAS_LIMIT = 2**30
"""Largest integer of a bias: half of int32, the other half is left to the accumulator."""


def per_channel(values: FloatArray, rank: int, axis: int | None) -> FloatArray:
    """`values`, one per channel or a scalar, shaped to broadcast along `axis` of a tensor."""
    if axis is None:
        return np.asarray(values, dtype=np.float32).reshape(())
    shape = [1] * rank
    shape[axis] = -1
    return np.asarray(values, dtype=np.float32).reshape(shape)


def _other_axes(rank: int, axis: int | None) -> tuple[int, ...]:
    return tuple(i for i in range(rank) if i != axis)


def weight_threshold_max(weight: FloatArray, axis: int | None) -> FloatArray:
    """The largest magnitude of the weights: of each channel along `axis`, or of all.

    Returns:
        float32, shape (channels,), or () where `axis` is None; never below the smallest
        threshold that keeps the scale safe to divide by.
    """
    largest = np.abs(weight).max(axis=_other_axes(weight.ndim, axis), initial=0.0)
    floor = SMALLEST_SCALE * np.float32(127)
    return np.asarray(np.maximum(largest, floor), dtype=np.float32)


def weight_scale(threshold: FloatArray, num_bits: int) -> FloatArray:
    """The scale T / (2^(n-1) - 1), float32, in the shape of the threshold T."""
    return np.asarray(threshold / np.float32(WEIGHT.steps(num_bits)), dtype=np.float32)


def quantize_weight(
    weight: FloatArray, scale: FloatArray, num_bits: int, axis: int | None
) -> IntArray:
    """clip(round(weight / scale), -(2^(n-1) - 1), 2^(n-1) - 1), int8, the shape of the weight."""
    largest = WEIGHT.largest(num_bits)
    integers = np.rint(weight / per_channel(scale, weight.ndim, axis))
    return np.asarray(np.clip(integers, -largest, largest), dtype=WEIGHT.integer)


def dequantize_weight(integers: IntArray, scale: FloatArray, axis: int | None) -> FloatArray:
    """Scale * integer, float32, what DequantizeLinear with zero point 0 gives."""
    return integers.astype(np.float32) * per_channel(scale, integers.ndim, axis)


def fake_quant_weight(
    weight: FloatArray, scale: FloatArray, num_bits: int, axis: int | None
) -> FloatArray:
    """The weights quantized and back, float32, of the shape of `weight`."""
    return dequantize_weight(quantize_weight(weight, scale, num_bits, axis), scale, axis)


def is_unclipped(
    weight: FloatArray, threshold: FloatArray, num_bits: int, axis: int | None
) -> npt.NDArray[np.bool_]:
    """Which weights are rounded without being clipped, bool, the shape of `weight`."""
    scale = per_channel(weight_scale(threshold, num_bits), weight.ndim, axis)
    return np.abs(weight) <= scale * np.float32(WEIGHT.largest(num_bits) + 0.5)


def weight_threshold_gradient(
    gradient: FloatArray,
    weight: FloatArray,
    threshold: FloatArray,
    num_bits: int,
    axis: int | None,
) -> FloatArray:
    """The gradient of the loss L by the threshold T of a weight.

    With y = fake_quant(w), straight-through rounding and clip'(x) = 1 inside, 0 outside
    (FAT, section 3): dy/dT = (y - w)/T inside and y/T where clipped, so that
    dL/dT = (sum g y - sum_inside g w) / T.

    Args:
        gradient: g = dL/dy, the shape of `weight`.
        weight: w, float32.
        threshold: T, (channels,), or () where `axis` is None.
        num_bits: 2 to 8.
        axis: the channel axis, or None.

    Returns:
        dL/dT, float32, the shape of `threshold`.
    """
    scale = weight_scale(threshold, num_bits)
    fake = fake_quant_weight(weight, scale, num_bits, axis)
    inside = is_unclipped(weight, threshold, num_bits, axis)
    terms = gradient * (fake - np.where(inside, weight, np.float32(0)))
    total = terms.sum(axis=_other_axes(weight.ndim, axis), dtype=np.float64)
    return np.asarray(total / threshold, dtype=np.float32)


def bias_scale(input_scale: np.float32, scale: FloatArray) -> FloatArray:
    """The scale of an integer bias, s_in * s_w, float32, the shape of the weight's scale s_w."""
    return np.asarray(np.float32(input_scale) * scale, dtype=np.float32)


def smallest_weight_scale(bias: FloatArray, input_scale: np.float32) -> FloatArray:
    """The weight scale s_w below which |b| / (s_in * s_w) would be above `BIAS_LIMIT`."""
    return np.asarray(np.abs(bias) / (np.float32(input_scale) * BIAS_LIMIT), dtype=np.float32)


def quantize_bias(bias: FloatArray, scale: FloatArray) -> npt.NDArray[np.int32]:
    """clip(round(b / scale), -(2^31 - 1), 2^31 - 1), int32, the shape of `bias`."""
    integers = np.rint(bias.astype(np.float64) / scale)
    largest = BIAS.largest(32)
    return np.clip(integers, -largest, largest).astype(np.int32)


def fake_quant_bias(bias: FloatArray, scale: FloatArray) -> FloatArray:
    """The bias rounded to integers and back, float32, what DequantizeLinear gives."""
    return quantize_bias(bias, scale).astype(np.float32) * scale


LARGEST_SUM = 32767
"""That 16 bits hold."""


def may_saturate(integers: IntArray, axis: int) -> bool:
    """Whether two adjacent products of an output channel can leave 16 bits.

    A convolution's products are adjacent along its input channels, as ONNX Runtime orders
    them. A depth-wise convolution has one input channel and other kernels: never.

    Args:
        integers: int8 weights, of a Conv (out, in/group, ...), Gemm or MatMul.
        axis: the axis of output channels.
    """
    rows = np.moveaxis(integers, axis, 0)
    if integers.ndim > 2:
        if integers.shape[1] == 1:
            return False
        rows = np.moveaxis(integers, 1, -1)
    rows = np.abs(rows.reshape(rows.shape[0], -1).astype(np.int32))
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    largest = ACTIVATIONS["asymmetric"].largest(8)
    return bool((largest * (rows[:, 0::2] + rows[:, 1::2]) > LARGEST_SUM).any())
