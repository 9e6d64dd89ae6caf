"""Quantization parameters of a tensor.

And the arithmetic of QuantizeLinear and DequantizeLinear.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int8]

SMALLEST_SCALE = np.float32(1e-10)
"""A dead tensor or channel gets this scale: small, but safe to divide by."""

BIAS_LIMIT = 2**30
"""Largest bias code allowed: half of int32, the other half is left to the accumulator."""


def quant_max(num_bits: int) -> int:
    """The largest unsigned code, 2^n - 1."""
    return int(2**num_bits - 1)


def weight_quant_max(num_bits: int) -> int:
    """The largest signed code, 2^(n-1) - 1 (FAT, with the erratum for signed values)."""
    return int(2 ** (num_bits - 1) - 1)


def affine_qparams(left: float, width: float, num_bits: int) -> tuple[np.float32, int]:
    """The scale and integer zero point of the range [left, left + width].

    scale = width / (2^n - 1), zero_point = clip(round(-left / scale), 0, 2^n - 1).
    The limits that the codes really reach are recomputed from the rounded zero point:
    [-scale * zero_point, scale * (2^n - 1 - zero_point)].

    Args:
        left: left limit, real, at most 0.
        width: width of the range, real, positive.
        num_bits: width of a code.

    Returns:
        scale (float32, real per code) and zero point (code).

    Raises:
        ValueError: the width is not positive.
    """
    if not width > 0:
        raise ValueError(f"the width of a range must be positive, found {width!r}")
    largest = quant_max(num_bits)
    scale = np.float32(width) / np.float32(largest)
    zero_point = int(np.clip(np.rint(-np.float32(left) / scale), 0, largest))
    return scale, zero_point


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
    """Scale = threshold / (2^(n-1) - 1), elementwise, float32."""
    return np.asarray(threshold / np.float32(weight_quant_max(num_bits)), dtype=np.float32)


def quantize_weight(
    weight: FloatArray, scale: FloatArray, num_bits: int, axis: int | None
) -> IntArray:
    """Signed codes: clip(round(weight / scale), -(2^(n-1) - 1), 2^(n-1) - 1), int8."""
    limit = weight_quant_max(num_bits)
    codes = np.rint(weight / per_channel(scale, weight.ndim, axis))
    return np.asarray(np.clip(codes, -limit, limit), dtype=np.int8)


def dequantize_weight(codes: IntArray, scale: FloatArray, axis: int | None) -> FloatArray:
    """Scale * code, float32, what DequantizeLinear with zero point 0 gives."""
    return codes.astype(np.float32) * per_channel(scale, codes.ndim, axis)


def fake_quant_weight(
    weight: FloatArray, scale: FloatArray, num_bits: int, axis: int | None
) -> FloatArray:
    """The weights quantized and back, float32, of the shape of `weight`."""
    return dequantize_weight(quantize_weight(weight, scale, num_bits, axis), scale, axis)


def inside_codes(
    weight: FloatArray, threshold: FloatArray, num_bits: int, axis: int | None
) -> npt.NDArray[np.bool_]:
    """Which weights round to a code without being clipped, bool, the shape of `weight`."""
    scale = weight_scale(threshold, num_bits)
    limit = per_channel(scale, weight.ndim, axis) * np.float32(weight_quant_max(num_bits) + 0.5)
    return np.abs(weight) <= limit


def weight_threshold_gradient(
    gradient: FloatArray,
    weight: FloatArray,
    threshold: FloatArray,
    num_bits: int,
    axis: int | None,
) -> FloatArray:
    """The gradient of the loss by the threshold of a symmetric weight quantizer.

    With y = fake_quant(w), straight-through rounding and clip'(x) = 1 inside, 0 outside
    (FAT): dy/dT = (y - w)/T inside and y/T where saturated, so that
    dL/dT = (sum g*y - sum_inside g*w) / T.

    Args:
        gradient: dL/dy, the shape of `weight`.
        weight: the float weights.
        threshold: T, shape (channels,), or () where `axis` is None.
        num_bits: width of a code.
        axis: the channel axis, or None.

    Returns:
        dL/dT, float32, the shape of `threshold`.
    """
    scale = weight_scale(threshold, num_bits)
    fake = fake_quant_weight(weight, scale, num_bits, axis)
    inside = inside_codes(weight, threshold, num_bits, axis)
    terms = gradient * (fake - np.where(inside, weight, np.float32(0)))
    total = terms.sum(axis=_other_axes(weight.ndim, axis), dtype=np.float64)
    return np.asarray(total / threshold, dtype=np.float32)


def bias_scale(input_scale: np.float32, scale: FloatArray) -> FloatArray:
    """The scale of the int32 bias, s_in * s_w, float32, the shape of the weight's scale."""
    return np.asarray(np.float32(input_scale) * scale, dtype=np.float32)


def smallest_weight_scale(bias: FloatArray, input_scale: np.float32) -> FloatArray:
    """The weight scale below which a bias code |b| / (s_in * s_w) would leave its range."""
    return np.asarray(np.abs(bias) / (np.float32(input_scale) * BIAS_LIMIT), dtype=np.float32)


def quantize_bias(bias: FloatArray, scale: FloatArray) -> npt.NDArray[np.int32]:
    """b_q = clip(round(b / (s_in * s_w)), +-(2^31 - 1)), int32, the shape of `bias`."""
    codes = np.rint(bias.astype(np.float64) / scale)
    limit = np.iinfo(np.int32).max
    return np.clip(codes, -limit, limit).astype(np.int32)


def fake_quant_bias(bias: FloatArray, scale: FloatArray) -> FloatArray:
    """The bias on its int32 grid, in float32, what DequantizeLinear gives."""
    return quantize_bias(bias, scale).astype(np.float32) * scale


LARGEST_CODE = 255
LIMIT = 32767


def may_saturate(codes: IntArray, axis: int) -> bool:
    """Whether two adjacent products of an output channel can leave 16 bits.

    A convolution's products are adjacent along its input channels, as ONNX Runtime orders
    them. A depth-wise convolution has one input channel and other kernels: never.

    Args:
        codes: signed weight codes, of a Conv (out, in/group, ...), Gemm or MatMul.
        axis: the axis of output channels.
    """
    rows = np.moveaxis(codes, axis, 0)
    if codes.ndim > 2:
        if codes.shape[1] == 1:
            return False
        rows = np.moveaxis(codes, 1, -1)
    rows = np.abs(rows.reshape(rows.shape[0], -1).astype(np.int32))
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    return bool((LARGEST_CODE * (rows[:, 0::2] + rows[:, 1::2]) > LIMIT).any())
