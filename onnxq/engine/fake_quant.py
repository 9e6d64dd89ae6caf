"""Gradients of the fake-quant functions, straight-through inside the range.

With m = 1 where x is rounded without being clipped and 0 elsewhere, G = dL/dy, y the output
and ``lo`` the real value of the integer 0 (FAT, Goncharenko et al. 2019, section 3, with the
range recomputed from the rounded zero point):

    dL/dx         = G m
    dL/dlowest    = sum G (1 - m)
    dL/dwidth     = (sum G y - sum G m x - lo sum G (1 - m)) / width
    dL/dthreshold = (sum G y - sum G m x) / threshold

The last but one line is dy/dwidth = 1 above the range, 0 below it, (y - x) / width inside.
"""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from onnxq.engine.builder import Builder
from onnxq.engine.form import Form, Gradients, Rule
from onnxq.numerics.quantizers import ACTIVATIONS, Kind


def fake_quant_rule(kind: Kind, num_bits: int) -> Rule:
    """The rule of one fake-quant function."""
    write = {"asymmetric": _asymmetric, "positive": _positive, "symmetric": _symmetric}[kind]
    return Rule(partial(write, num_bits))


def _positive(num_bits: int, form: Form, b: Builder) -> Gradients:
    x, width = b.input(0), b.input(1)
    half_step = b.op("Mul", width, 0.5 / ACTIVATIONS["positive"].steps(num_bits))
    above = b.op("Sub", b.op("Add", width, half_step), x)
    dx = b.op("Mul", b.gradient(), b.positive(b.op("Mul", above, x)))
    return {0: dx, 1: b.op("Div", _surplus(b, dx), width)}


def _symmetric(num_bits: int, form: Form, b: Builder) -> Gradients:
    x, threshold = b.input(0), b.input(1)
    quantizer = ACTIVATIONS["symmetric"]
    zero, steps = quantizer.fixed_zero_point(num_bits), quantizer.steps(num_bits)
    upper = b.op("Mul", threshold, (steps + 0.5) / steps)
    lower = b.op("Mul", threshold, -(zero + 0.5) / steps)
    dx = _pass_inside(b, x, lower, upper)
    return {0: dx, 1: b.op("Div", _surplus(b, dx), threshold)}


def _asymmetric(num_bits: int, form: Form, b: Builder) -> Gradients:
    x, lowest, width = (b.input(i) for i in range(3))
    largest = b.scalar(ACTIVATIONS["asymmetric"].largest(num_bits))
    scale = b.op("Div", width, largest)
    position = b.op("Round", b.op("Div", b.op("Neg", lowest), scale))
    zero_point = b.op("Clip", position, 0.0, largest)
    reached = b.op("Neg", b.op("Mul", scale, zero_point))
    half_step = b.op("Mul", scale, 0.5)
    lower = b.op("Sub", reached, half_step)
    upper = b.op("Add", b.op("Add", reached, width), half_step)
    dx = _pass_inside(b, x, lower, upper)
    clipped = b.op("Sub", b.total(b.gradient()), b.total(dx))
    surplus = b.op("Sub", _surplus(b, dx), b.op("Mul", reached, clipped))
    return {0: dx, 1: clipped, 2: b.op("Div", surplus, width)}


def _pass_inside(b: Builder, x: ir.Value, lower: ir.Value, upper: ir.Value) -> ir.Value:
    """G where lower < x < upper, 0 elsewhere."""
    distance = b.op("Mul", b.op("Sub", upper, x), b.op("Sub", x, lower))
    return b.op("Mul", b.gradient(), b.positive(distance))


def _surplus(b: Builder, dx: ir.Value) -> ir.Value:
    """Sum of G y - dx x: what the output holds beyond its straight-through part."""
    gained = b.op("Mul", b.gradient(), b.output())
    return b.total(b.op("Sub", gained, b.op("Mul", dx, b.input(0))))
