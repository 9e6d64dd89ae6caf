"""Fake quantization of activations as model-local functions, one per kind and width.

Each body is a QuantizeLinear / DequantizeLinear pair, so the student computes in training
what the exported model computes. The functions' inputs are a tensor and the real parameters of its
quantizer; scale and zero point follow from them inside the body, in float32, as
``onnxq.numerics.quantizers`` has it. Their gradients belong to the training engine.

| kind | op type | inputs |
|---|---|---|
| ``asymmetric`` | ``FakeQuant{n}`` | x, lowest, width |
| ``positive`` | ``FakeQuantPositive{n}`` | x, width |
| ``symmetric`` | ``FakeQuantSymmetric{n}`` | x, threshold |
"""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from onnxq.numerics.quantizers import ACTIVATIONS, Kind

DOMAIN = "onnxq"
"""The domain of the model-local functions."""


def function_name(kind: Kind, num_bits: int) -> str:
    """The op type of a kind and a number of bits, for example ``FakeQuantPositive8``."""
    if not 2 <= num_bits <= 8:
        raise ValueError(f"num_bits is {num_bits}; expected 2 to 8")
    return f"{ACTIVATIONS[kind].op_type}{num_bits}"


def parse_function_name(op_type: str) -> tuple[Kind, int] | None:
    """The kind and the number of bits behind an op type; None for any other op."""
    match = re.fullmatch(r"(\w+)([2-8])", op_type)
    kinds = [k for k, quantizer in ACTIVATIONS.items() if match and quantizer.op_type == match[1]]
    return (kinds[0], int(match[2])) if match and kinds else None


def function(kind: Kind, num_bits: int, opset_version: int = 13) -> ir.Function:
    """The model-local function that fake-quantizes a tensor of any shape.

    y = scale * (clip(round_half_even(x / scale) + zero_point, 0, 2^n - 1) - zero_point)

    Args:
        kind: see the table at the head of this module.
        num_bits: of the integers, 2 to 8; they are stored as uint8.
        opset_version: that of the model the function is added to.

    Returns:
        A function of ``x`` (float32, any shape) and the kind's parameters (float32 scalars).
    """
    name = function_name(kind, num_bits)
    inputs = [ir.val(n, ir.DataType.FLOAT) for n in ("x", *ACTIVATIONS[kind].parameters)]
    body = tape.Tape()
    scale, zero_point = _qparams(body, kind, num_bits, inputs[1:])
    quantized = body.op("QuantizeLinear", [inputs[0], scale, zero_point])
    if num_bits < 8:
        ends = (_constant(body, np.uint8(v)) for v in (0, ACTIVATIONS[kind].largest(num_bits)))
        quantized = body.op("Clip", [quantized, *ends])
    y = body.op("DequantizeLinear", [quantized, scale, zero_point])
    y.name = "y"
    graph = ir.Graph(inputs, [y], nodes=body.nodes, opset_imports={"": opset_version}, name=name)
    return ir.Function(DOMAIN, name, graph=graph, attributes=[])


def add_functions(model: ir.Model, kinds: Collection[tuple[Kind, int]]) -> None:
    """Give a model the functions of these kinds and widths, in place."""
    version = model.graph.opset_imports.get("", 13)
    for kind, num_bits in sorted(kinds):
        made = function(kind, num_bits, version)
        model.functions[made.identifier()] = made
    if kinds:
        model.graph.opset_imports[DOMAIN] = 1


def call(kind: Kind, num_bits: int, x: ir.Value, *parameters: ir.Value) -> ir.Node:
    """A node that calls the function; the model must hold it and import its domain."""
    return ir.node(function_name(kind, num_bits), [x, *parameters], domain=DOMAIN, version=1)


def _qparams(
    body: tape.Tape, kind: Kind, num_bits: int, parameters: list[ir.Value]
) -> tuple[ir.Value, ir.Value]:
    """Scale (float32) and zero point (uint8), as `Quantizer.scale_and_zero_point` has them."""
    quantizer = ACTIVATIONS[kind]
    steps = _constant(body, np.float32(quantizer.steps(num_bits)))
    scale = body.op("Div", [parameters[-1], steps])
    if not quantizer.has_lowest:
        return scale, _constant(body, np.uint8(quantizer.fixed_zero_point(num_bits)))
    position = body.op("Round", [body.op("Div", [body.op("Neg", [parameters[0]]), scale])])
    ends = (_constant(body, np.float32(v)) for v in (0, quantizer.largest(num_bits)))
    clipped = body.op("Clip", [position, *ends])
    return scale, body.op("Cast", [clipped], {"to": ir.DataType.UINT8})


def _constant(body: tape.Tape, value: np.generic) -> ir.Value:
    return body.op("Constant", [], {"value": ir.tensor(np.asarray(value))})
