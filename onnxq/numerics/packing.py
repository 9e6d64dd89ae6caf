"""Arrays in few bytes: low-bit integers packed, values that repeat along an axis once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

MOST_INDICES = 256
TRITS = 5
"""Ternary digits in a byte: 3^5 = 243."""

_WIDTHS = (8, 4, 2, 1)
_MOST_TRITS = 5


@dataclass(frozen=True)
class Field:
    """One digit of every index.

    Attributes:
        base: 2, 4, 16 or 256, or 3 for a ternary digit.
        place: the value of a digit of 1.
    """

    base: int
    place: int

    @property
    def per_byte(self) -> int:
        """Digits in one byte."""
        return TRITS if self.base == 3 else 8 // self.bits

    @property
    def bits(self) -> int:
        """Width of a digit of a base that is a power of two."""
        return self.base.bit_length() - 1


def fields(count: int) -> tuple[Field, ...]:
    """The fields of indices below `count`, at most 256, that take the fewest bits."""
    count = max(count, 2)
    choices = []
    for trits in range(_MOST_TRITS + 1):
        bits = max(0, math.ceil(math.log2(count / 3**trits) - 1e-12))
        choices.append((bits + trits * 8 / TRITS, trits, bits))
    _, trits, bits = min(choices)
    found, done = [], 0
    for width in _WIDTHS:
        if bits & width:
            found.append(Field(2**width, 2**done))
            done += width
    return (*found, *(Field(3, 2**bits * 3**i) for i in range(trits)))


def bits_per_index(count: int) -> float:
    """Bits that an index below `count` takes."""
    return sum(8 / field.per_byte for field in fields(count))


def packed_bytes(size: int, count: int, rows: int = 1) -> int:
    """Bytes that `size` indices below `count` take, in `rows` rows of whole bytes each."""
    return rows * sum(-(-(size // rows) // field.per_byte) for field in fields(count))


def pack(indices: Bytes, field: Field) -> Bytes:
    """One field of some indices, (bytes,): digit i is in byte i // per_byte."""
    flat = indices.reshape(-1)
    digits = flat if field.base == MOST_INDICES else (flat // field.place) % field.base
    padded = np.zeros(-(-flat.size // field.per_byte) * field.per_byte, np.uint8)
    padded[: flat.size] = digits
    rows = padded.reshape(-1, field.per_byte)
    packed = np.zeros(rows.shape[0], np.uint8)
    for i in range(field.per_byte):
        packed += rows[:, i] * np.uint8(field.base**i) if i else rows[:, 0]
    return packed


def pack_rows(indices: Bytes, field: Field) -> Bytes:
    """One field of some indices, packed along the last axis alone.

    Digit i of byte j is that of index i * bytes + j, so that the digits of a row are unpacked one
    behind the other.
    """
    *leading, size = indices.shape
    width = -(-size // field.per_byte)
    padded = np.zeros((*leading, field.per_byte * width), np.uint8)
    padded[..., :size] = indices
    digits = padded.reshape(*leading, field.per_byte, width)
    return pack(np.moveaxis(digits, -2, -1), field).reshape(*leading, width)


def collapsed(array: np.ndarray) -> np.ndarray:
    """The array with size 1 along each axis along which all slices are equal.

    It is a view. Broadcast to the shape of `array` it is `array` again, bit by bit.
    """
    found = array
    for axis in range(array.ndim):
        first = found.take([0], axis) if found.shape[axis] else found
        if found.shape[axis] > 1 and _same(found, first):
            found = first
    return found


def _same(array: np.ndarray, first: np.ndarray) -> bool:
    """Whether the array is `first`, broadcast; NaN counts as equal, -0 and 0 do not."""
    if array.dtype.kind == "f":
        bits = np.dtype(f"u{array.itemsize}")
        return bool((np.ascontiguousarray(array).view(bits) == first.view(bits)).all())
    return bool((array == first).all())
