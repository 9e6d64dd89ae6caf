"""Which layers get a codebook or packed codes: those whose file they make smaller."""

from __future__ import annotations

from onnxq.numerics.packing import fields, packed_bytes
from onnxq.numerics.qparams import weight_quant_max
from onnxq.plan.spec import CODE_BITS, LayerSpec

LOOKUP_BYTES, FIELD_BYTES = 20, 230
"""Bytes of a lookup's nodes and constants, about: of itself, and for each field of its indices."""

SCALE_BYTES = 4
"""Bytes of a scale; its zero point takes one more."""

WORTH = 0.01
"""Share of the codes' bytes that float centroids may take beyond them."""


def codebook_bytes(parameters: int, count: int, *, integer: bool) -> int:
    """Bytes of a weight as a codebook: indices, table and the nodes that look it up."""
    table = count * (1 if integer else 4)
    nodes = LOOKUP_BYTES + FIELD_BYTES * len(fields(count))
    return packed_bytes(parameters, count) + table + nodes


def packed_code_bytes(parameters: int, num_bits: int) -> int:
    """Bytes of a weight as packed codes of n bits: a codebook of all 2^n - 1 codes."""
    return codebook_bytes(parameters, 2 * weight_quant_max(num_bits) + 1, integer=True)


def packing_refusal(parameters: int, num_bits: int) -> str:
    """Why codes of less than 8 bits are stored one in a byte; empty where they are packed."""
    size = packed_code_bytes(parameters, num_bits)
    if size < parameters:
        return ""
    return f"one code in a byte: packed, {num_bits} bits take {size:,} bytes, not {parameters:,}"


def code_bytes(parameters: int, num_bits: int) -> int:
    """Bytes that codes take in the file, packed where that is smaller."""
    if num_bits == CODE_BITS or packing_refusal(parameters, num_bits):
        return parameters
    return packed_code_bytes(parameters, num_bits)


def weight_bytes(spec: LayerSpec, *, integer: bool) -> int:
    """Bytes of a layer's weights in the file: codes or codebook, scales and zero points.

    Args:
        spec: the layer; whether its codes are packed follows from their number.
        integer: whether an integer kernel reads the weights, which gives scales zero points.
    """
    scales = 1 if spec.axis is None else spec.channels
    if spec.codebook is None:
        return code_bytes(spec.parameters, spec.num_bits) + scales * (SCALE_BYTES + integer)
    size = codebook_bytes(spec.parameters, spec.codebook, integer=integer)
    # Float centroids without channels are the weights themselves.
    return size + (scales * (SCALE_BYTES + integer) if integer or spec.axis is not None else 0)


def codebook_refusal(parameters: int, count: int, *, integer: bool) -> str:
    """Why the layer has no codebook, or nothing where it has one.

    A layer without one stores one byte per weight. Float centroids may take a little more: as many
    of them as there are codes lie better.
    """
    size = codebook_bytes(parameters, count, integer=integer)
    if size < parameters * (1 if integer else 1 + WORTH):
        return ""
    return f"no codebook: {count} centroids take {size:,} bytes, its codes {parameters:,}"
