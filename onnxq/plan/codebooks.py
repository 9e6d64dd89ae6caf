"""Which layers get a codebook: those whose file it makes smaller."""

from __future__ import annotations

from onnxq.numerics.packing import fields, packed_bytes

LOOKUP_BYTES, FIELD_BYTES = 60, 280
"""Bytes of a lookup's nodes and constants, about: of itself, and for each field of its indices."""


WORTH = 0.01
"""Share of the codes' bytes that float centroids may take beyond them."""


def codebook_bytes(parameters: int, count: int, *, integer: bool) -> int:
    """Bytes of a weight as a codebook: indices, table and the nodes that look it up."""
    table = count * (1 if integer else 4)
    nodes = LOOKUP_BYTES + FIELD_BYTES * len(fields(count))
    return packed_bytes(parameters, count) + table + nodes


def codebook_refusal(parameters: int, count: int, *, integer: bool) -> str:
    """Why the layer has no codebook, or nothing where it has one.

    A layer without one stores one byte per weight. Float centroids may take a little more: as many
    of them as there are codes lie better.
    """
    size = codebook_bytes(parameters, count, integer=integer)
    if size < parameters * (1 if integer else 1 + WORTH):
        return ""
    return f"no codebook: {count} centroids take {size:,} bytes, its codes {parameters:,}"
