"""Which layers get a codebook: those whose file it makes smaller."""

from __future__ import annotations

from onnxq.numerics.packing import packed_bytes

LOOKUP_BYTES = 640
"""Bytes of the nodes that unpack the indices, about, with their names."""


def codebook_bytes(parameters: int, count: int, *, integer: bool) -> int:
    """Bytes of a weight as a codebook: indices, table and the nodes that look it up."""
    table = count * (1 if integer else 4)
    return packed_bytes(parameters, count) + table + LOOKUP_BYTES


def codebook_refusal(parameters: int, count: int, *, integer: bool) -> str:
    """Why the layer has no codebook, or nothing where it has one.

    A layer without one stores one byte per weight.
    """
    size = codebook_bytes(parameters, count, integer=integer)
    if size < parameters:
        return ""
    return f"no codebook: {count} centroids take {size:,} bytes, its codes {parameters:,}"
