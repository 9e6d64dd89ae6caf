"""Fake quantization of activations as model-local functions, one per kind and width.

Each body is a QuantizeLinear / DequantizeLinear pair, so the student computes in training
what the exported model computes. The functions' inputs are the range's float limits;
scale and zero point are derived from them inside the body, in float32, with the
arithmetic of ``onnxq.numerics.qparams``. Their gradients belong to the training engine.

| kind | op type | inputs | scale | zero point |
|---|---|---|---|---|
| ``asymmetric`` | ``FakeQuant{n}`` | x, left, width | width / (2^n - 1) | round(-left / scale) |
| ``positive`` | ``FakeQuantPositive{n}`` | x, width | width / (2^n - 1) | 0 |
| ``symmetric`` | ``FakeQuantSymmetric{n}`` | x, threshold | threshold / (2^(n-1) - 1) | 2^(n-1) |
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

DOMAIN = "onnxq"
"""The domain of the model-local functions."""

Kind = Literal["asymmetric", "positive", "symmetric"]

OP_TYPES: dict[Kind, str] = {
    "asymmetric": "FakeQuant",
    "positive": "FakeQuantPositive",
    "symmetric": "FakeQuantSymmetric",
}
LIMITS: dict[Kind, tuple[str, ...]] = {
    "asymmetric": ("left", "width"),
    "positive": ("width",),
    "symmetric": ("threshold",),
}
"""The float scalars that follow ``x``, by kind."""


def function_name(kind: Kind, num_bits: int) -> str:
    """The op type of a kind and width, for example ``FakeQuantPositive8``."""
    if not 2 <= num_bits <= 8:
        raise ValueError(f"num_bits is {num_bits}; expected 2 to 8")
    return f"{OP_TYPES[kind]}{num_bits}"


def parse_function_name(op_type: str) -> tuple[Kind, int] | None:
    """The kind and width behind an op type; None for any other op."""
    match = re.fullmatch(r"(FakeQuant|FakeQuantPositive|FakeQuantSymmetric)([2-8])", op_type)
    if match is None:
        return None
    kind = next(k for k, prefix in OP_TYPES.items() if prefix == match[1])
    return kind, int(match[2])


def function(kind: Kind, num_bits: int, opset_version: int = 13) -> ir.Function:
    """The model-local function that fake-quantizes a tensor of any shape.

    y = scale * (clip(round_half_even(x / scale) + zero_point, 0, 2^n - 1) - zero_point)

    Args:
        kind: see the table at the head of this module.
        num_bits: width of the codes, 2 to 8; they are stored as uint8.
        opset_version: that of the model the function is added to.

    Returns:
        A function of ``x`` (float32, any shape) and the kind's limits (float32 scalars).
    """
    name = function_name(kind, num_bits)
    inputs = [ir.val(n, ir.DataType.FLOAT) for n in ("x", *LIMITS[kind])]
    body = tape.Tape()
    scale, zero_point = _qparams(body, kind, num_bits, inputs[1:])
    codes = body.op("QuantizeLinear", [inputs[0], scale, zero_point])
    if num_bits < 8:
        bounds = (_constant(body, np.uint8(v)) for v in (0, 2**num_bits - 1))
        codes = body.op("Clip", [codes, *bounds])
    y = body.op("DequantizeLinear", [codes, scale, zero_point])
    y.name = "y"
    graph = ir.Graph(inputs, [y], nodes=body.nodes, opset_imports={"": opset_version}, name=name)
    return ir.Function(DOMAIN, name, graph=graph, attributes=[])


def call(kind: Kind, num_bits: int, x: ir.Value, *limits: ir.Value) -> ir.Node:
    """A node that calls the function; the model must hold it and import its domain."""
    return ir.node(function_name(kind, num_bits), [x, *limits], domain=DOMAIN, version=1)


def _qparams(
    body: tape.Tape, kind: Kind, num_bits: int, limits: list[ir.Value]
) -> tuple[ir.Value, ir.Value]:
    """Values of scale (float32) and zero_point (uint8), as the head of the module defines them."""
    quant_max = 2**num_bits - 1
    steps = 2 ** (num_bits - 1) - 1 if kind == "symmetric" else quant_max
    scale = body.op("Div", [limits[-1], _constant(body, np.float32(steps))])
    if kind == "positive":
        return scale, _constant(body, np.uint8(0))
    if kind == "symmetric":
        return scale, _constant(body, np.uint8(2 ** (num_bits - 1)))
    position = body.op("Round", [body.op("Div", [body.op("Neg", [limits[0]]), scale])])
    bounds = (_constant(body, np.float32(v)) for v in (0, quant_max))
    clipped = body.op("Clip", [position, *bounds])
    return scale, body.op("Cast", [clipped], {"to": ir.DataType.UINT8})


def _constant(body: tape.Tape, value: np.generic) -> ir.Value:
    return body.op("Constant", [], {"value": ir.tensor(np.asarray(value))})
