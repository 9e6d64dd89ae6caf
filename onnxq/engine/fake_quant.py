"""Gradients of the fake-quant functions, straight-through inside the range.

With m = 1 where x rounds to a code of the range and 0 elsewhere, G = dL/dy, y the output
and ``lo`` the real value of code 0 (FAT, Goncharenko et al. 2019, section 3, with the
limits recomputed from the rounded zero point):

    dL/dx         = G m
    dL/dleft      = sum G (1 - m)
    dL/dwidth     = (sum G y - sum G m x - lo sum G (1 - m)) / width
    dL/dthreshold = (sum G y - sum G m x) / threshold

The last but one line is dy/dwidth = 1 above the range, 0 below it, (y - x) / width inside.
"""

from __future__ import annotations

from onnxq.engine.definition import Definition
from onnxq.graph.fake_quant import Kind


def define_fake_quant(kind: Kind, num_bits: int, definition: Definition) -> None:
    """Write the gradients of one fake-quant function."""
    {"asymmetric": _asymmetric, "positive": _positive, "symmetric": _symmetric}[kind](
        definition, num_bits
    )


def _positive(d: Definition, num_bits: int) -> None:
    x, width = d.input(0), d.input(1)
    half_step = d.op("Mul", width, d.scalar(0.5 / (2**num_bits - 1)))
    above = d.op("Sub", d.op("Add", width, half_step), x)
    dx = d.op("Mul", d.gradient(), d.positive(d.op("Mul", above, x)))
    d.result(0, dx)
    d.result(1, d.op("Div", _surplus(d, dx), width))


def _symmetric(d: Definition, num_bits: int) -> None:
    x, threshold = d.input(0), d.input(1)
    codes = 2 ** (num_bits - 1)
    upper = d.op("Mul", threshold, d.scalar((codes - 0.5) / (codes - 1)))
    lower = d.op("Mul", threshold, d.scalar(-(codes + 0.5) / (codes - 1)))
    dx = _pass_inside(d, x, lower, upper)
    d.result(0, dx)
    d.result(1, d.op("Div", _surplus(d, dx), threshold))


def _asymmetric(d: Definition, num_bits: int) -> None:
    x, left, width = (d.input(i) for i in range(3))
    quant_max = d.scalar(2**num_bits - 1)
    scale = d.op("Div", width, quant_max)
    position = d.op("Round", d.op("Div", d.op("Neg", left), scale))
    zero_point = d.op("Clip", position, d.scalar(0.0), quant_max)
    lowest = d.op("Neg", d.op("Mul", scale, zero_point))
    half_step = d.op("Mul", scale, d.scalar(0.5))
    lower = d.op("Sub", lowest, half_step)
    upper = d.op("Add", d.op("Add", lowest, width), half_step)
    dx = _pass_inside(d, x, lower, upper)
    saturated = d.op("Sub", d.total(d.gradient()), d.total(dx))
    surplus = d.op("Sub", _surplus(d, dx), d.op("Mul", lowest, saturated))
    d.result(0, dx)
    d.result(1, saturated)
    # Constants of a definition have one dimension of size 1; the sum takes it off again.
    d.result(2, d.op("Div", d.total(surplus), width))


def _pass_inside(d: Definition, x: str, lower: str, upper: str) -> str:
    """G where lower < x < upper, 0 elsewhere."""
    distance = d.op("Mul", d.op("Sub", upper, x), d.op("Sub", x, lower))
    return d.op("Mul", d.gradient(), d.positive(distance))


def _surplus(d: Definition, dx: str) -> str:
    """Sum of G y - dx x: what the output holds beyond its straight-through part."""
    gained = d.op("Mul", d.gradient(), d.output())
    passed = d.op("Mul", dx, d.input(0))
    return d.total(d.op("Sub", gained, passed))
