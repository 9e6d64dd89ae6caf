"""The plan: a spec for each layer and each tensor, with its codebook and its bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from onnxq.graph.operators import TABLE
from onnxq.numerics.packing import fields, packed_bytes
from onnxq.numerics.quantizers import (
    ACTIVATIONS,
    CODEBOOK,
    FLOAT_CODEBOOK,
    WEIGHT,
    Kind,
    Quantizer,
)

BYTE_BITS = 8
"""Integers of so many bits are bytes already."""

INT4_BITS = 4
"""Integers of so many bits at most fit a tensor of type INT4."""

SATURATION_BITS = 7
"""Weights of so many bits never saturate the sums of x86 without VNNI."""

Compute = Literal["integer", "weight-only", "float"]


@dataclass(frozen=True)
class LayerSpec:
    """A layer whose weights are quantized, or trained as floats.

    Attributes:
        name: the node's name.
        op_type: Conv, ConvTranspose, Gemm, MatMul or Gather.
        weight: name of the weight's initializer.
        bias: name of the bias' initializer, or None.
        input: name of the value that the node reads, as the teacher names it.
        output: name of the value that the node writes.
        axis: the axis of the weight's scales, or None for one scale per tensor.
        channel_axis: the weight's axis of output channels, whatever the granularity.
        num_bits: of a weight as an integer, 2 to 8.
        compute: "integer" kernels; "weight-only": stored as integers, run in float; or "float".
        reason: why the layer is weight-only or float; empty otherwise.
        parameters: number of weights.
        codebook: number of centroids, or None where each weight is stored as an integer.
        refusal: why there is no codebook although the recipe asks for one, or why integers of
            less than 8 bits are not packed; '' otherwise.
        packed: integers of less than 8 bits are packed in the file.
        channels: number of output channels.
        int4: integers of 4 bits or fewer are a tensor of type INT4.
        factor: name of the constant by which this layer's weight is multiplied, one value per
            channel, where layers share the weight; or None.
        rows: number of rows that are packed each in bytes of its own, so that they can be looked
            up before they are unpacked: those of a table that is only looked up; 1 otherwise.
    """

    name: str
    op_type: str
    weight: str
    bias: str | None
    input: str
    output: str
    axis: int | None
    channel_axis: int
    num_bits: int
    compute: Compute
    reason: str
    parameters: int
    codebook: int | None = None
    refusal: str = ""
    packed: bool = False
    channels: int = 1
    int4: bool = False
    factor: str | None = None
    rows: int = 1

    @property
    def narrow(self) -> bool:
        """Whether the file holds integers of fewer bits than their tensor has."""
        held = INT4_BITS if self.int4 else BYTE_BITS
        return self.codebook is None and not self.packed and self.num_bits < held

    @property
    def centroid_max(self) -> int:
        """The largest int8 centroid: it has 7 bits at least, however small the codebook."""
        return CODEBOOK.largest(max(self.num_bits, SATURATION_BITS))

    def quantizer(self, *, integer: bool) -> Quantizer:
        """What the weight is quantized by; `integer` where an integer kernel reads it."""
        if self.codebook is None:
            return WEIGHT
        return CODEBOOK if integer else FLOAT_CODEBOOK

    def has_scale(self, *, integer: bool) -> bool:
        """Whether the file holds a scale: float centroids without channels are the weights."""
        return self.axis is not None or self.quantizer(integer=integer).integer is not None


@dataclass(frozen=True)
class TensorSpec:
    """An activation tensor that is quantized, once, with one scale.

    Attributes:
        name: name of the value in the teacher.
        signed: False where the graph shows that no value is negative.
        symmetric: the range is centred on zero (signed tensors only).
        num_bits: of a value as an integer, 2 to 8.
        calibration: the method that gives the starting range.
        folded: name of the Relu or Clip that the range stands for, or None.
        integer: the tensor is written by an integer kernel, so that every reader of it,
            float ones too, reads the quantized values.
    """

    name: str
    signed: bool
    symmetric: bool
    num_bits: int
    calibration: str
    folded: str | None = None
    integer: bool = True

    @property
    def kind(self) -> Kind:
        """Of the quantizer: positive (zero point 0), symmetric about zero, or asymmetric."""
        if not self.signed:
            return "positive"
        return "symmetric" if self.symmetric else "asymmetric"

    @property
    def quantizer(self) -> Quantizer:
        """What the kind stands for."""
        return ACTIVATIONS[self.kind]


@dataclass(frozen=True)
class Plan:
    """Specs by name, and the reason of every layer left alone.

    Attributes:
        layers: specs of the quantized layers by node name, in graph order.
        tensors: specs by value name, in graph order.
        data_movement: names of the nodes that move quantized values without computing.
        integer_nodes: names of the nodes without weights that have an integer kernel.
        left_alone: reason by node name, for nodes with weights that stay float.
        float_layers: specs by node name of those of them that are retrained, in graph order.
        first_last: names of the first and the last layer of the graph, whether float or not.
    """

    layers: dict[str, LayerSpec]
    tensors: dict[str, TensorSpec]
    data_movement: frozenset[str] = frozenset()
    integer_nodes: frozenset[str] = frozenset()
    left_alone: dict[str, str] = field(default_factory=dict)
    float_layers: dict[str, LayerSpec] = field(default_factory=dict)
    first_last: frozenset[str] = frozenset()

    def integer_layers(self) -> list[LayerSpec]:
        """The layers that run on integer kernels."""
        return [spec for spec in self.layers.values() if spec.compute == "integer"]

    def product_layers(self) -> list[LayerSpec]:
        """The layers that are products with their weights: all but table lookups.

        A table is not trained: its gradient would be as large as the table in every step.
        """
        return [spec for spec in self.layers.values() if spec.op_type != TABLE]


LOOKUP_BYTES, FIELD_BYTES = 20, 230
"""Bytes of a lookup's nodes and constants, about: of itself, and for each field of its indices."""

SCALE_BYTES = 4
"""Bytes of a scale; its zero point takes one more."""

WORTH = 0.01
"""Share of the integers' bytes that float centroids may take beyond them."""


def codebook_bytes(parameters: int, count: int, *, integer: bool, rows: int = 1) -> int:
    """Bytes of a weight as a codebook: indices, table and the nodes that look it up."""
    table = count * (CODEBOOK if integer else FLOAT_CODEBOOK).nbytes
    nodes = LOOKUP_BYTES + FIELD_BYTES * len(fields(count))
    return packed_bytes(parameters, count, rows) + table + nodes


def packed_integer_bytes(parameters: int, num_bits: int, rows: int = 1) -> int:
    """Bytes of a weight as packed integers of n bits: a codebook of all 2^n - 1 of them."""
    return codebook_bytes(parameters, 2 * WEIGHT.largest(num_bits) + 1, integer=True, rows=rows)


def packing_refusal(parameters: int, num_bits: int, rows: int = 1) -> str:
    """Why integers of less than 8 bits are stored one in a byte; empty where they are packed."""
    size = packed_integer_bytes(parameters, num_bits, rows)
    if size < parameters:
        return ""
    return f"one weight per byte: packed, {num_bits} bits take {size:,} bytes, not {parameters:,}"


def integer_bytes(parameters: int, num_bits: int, rows: int = 1) -> int:
    """Bytes that integers take in the file, packed where that is smaller."""
    if num_bits == BYTE_BITS or packing_refusal(parameters, num_bits, rows):
        return parameters
    return packed_integer_bytes(parameters, num_bits, rows)


def weight_bytes(spec: LayerSpec, *, integer: bool) -> int:
    """Bytes of a layer's weights in the file: integers or codebook, scales and zero points.

    Args:
        spec: the layer; whether its integers are packed follows from their count.
        integer: whether an integer kernel reads the weights, which gives scales zero points.
    """
    if spec.codebook is None:
        size = integer_bytes(spec.parameters, spec.num_bits, spec.rows)
    else:
        size = codebook_bytes(spec.parameters, spec.codebook, integer=integer, rows=spec.rows)
    scales = 1 if spec.axis is None else spec.channels
    return size + spec.has_scale(integer=integer) * scales * (SCALE_BYTES + integer)


def codebook_refusal(parameters: int, count: int, *, integer: bool, rows: int = 1) -> str:
    """Why the layer has no codebook; '' where it has one.

    Without a codebook a layer stores one byte per weight. Float centroids may take a little more:
    256 of them are closer than 8-bit integers.
    """
    size = codebook_bytes(parameters, count, integer=integer, rows=rows)
    if size < parameters * (1 if integer else 1 + WORTH):
        return ""
    return f"no codebook: {count} centroids take {size:,} bytes, integers {parameters:,}"
