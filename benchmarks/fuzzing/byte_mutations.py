"""Mutations of files as bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Mutation = Callable[[bytearray, np.random.Generator], bytearray]

MAGIC = (
    b"PK\x03\x04",
    b"\x89PNG\r\n\x1a\n",
    b"\x93NUMPY\x01\x00",
    b"\x08\x08",
    b"version https",
    b"{}",
)


def mutate_bytes(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """The bytes after one to three mutations, and which."""
    changed, done = bytearray(data), []
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        name = str(rng.choice(list(MUTATIONS)))
        changed = MUTATIONS[name](changed, rng)
        done.append(name)
    return bytes(changed), ", ".join(done)


def _at(data: bytearray, rng: np.random.Generator) -> int:
    return int(rng.integers(max(len(data), 1)))


def flip(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Flip single bits."""
    for _ in range(int(rng.integers(1, 9))):
        if data:
            data[_at(data, rng)] ^= 1 << int(rng.integers(8))
    return data


def flip_early(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Flip a bit near the beginning, where headers are."""
    if data:
        data[int(rng.integers(min(len(data), 128)))] ^= 1 << int(rng.integers(8))
    return data


def cut(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Keep the beginning."""
    return data[: _at(data, rng)]


def lose(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Remove a piece."""
    start = _at(data, rng)
    return data[:start] + data[start + int(rng.integers(1, 65)) :]


def insert(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Insert random bytes."""
    start = _at(data, rng)
    return data[:start] + rng.bytes(int(rng.integers(1, 65))) + data[start:]


def overwrite(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Overwrite a piece by one value, or by noise."""
    start, length = _at(data, rng), int(rng.integers(1, 65))
    value = bytes([int(rng.choice([0, 0x7F, 0x80, 0xFF]))]) * length
    piece = value if rng.random() < 0.7 else rng.bytes(length)
    return data[:start] + piece + data[start + length :]


def repeat(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Put a piece twice."""
    start = _at(data, rng)
    return data[: start + int(rng.integers(1, 513))] + data[start:]


def begin_otherwise(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Begin like another kind of file."""
    return bytearray(MAGIC[rng.integers(len(MAGIC))]) + data[8:]


def noise(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Nothing but noise, or nothing."""
    return bytearray(rng.bytes(int(rng.choice([0, 1, 7, 300]))))


MUTATIONS: dict[str, Mutation] = {
    each.__name__: each
    for each in (
        flip, flip_early, cut, lose, insert, overwrite, repeat, begin_otherwise, noise,
    )
}  # fmt: skip
