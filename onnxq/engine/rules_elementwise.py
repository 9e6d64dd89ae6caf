"""Gradients of element-wise operators of several operands, as broadcast as they are; G = dL/dy."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.engine.builder import Builder
from onnxq.engine.form import Form, Gradients, Rule
from onnxq.engine.sums import unbroadcast


def _summed(form: Form, b: Builder, gradients: Gradients) -> Gradients:
    """Each gradient in the shape of its input."""
    return {i: unbroadcast(b, g, b.input(i), b.output()) for i, g in gradients.items()}


def _sum(form: Form, b: Builder) -> Gradients:
    return _summed(form, b, dict.fromkeys(form.wanted, b.gradient()))


def _mean(form: Form, b: Builder) -> Gradients:
    share = b.op("Mul", b.gradient(), 1 / len(form.node.inputs))
    return _summed(form, b, dict.fromkeys(form.wanted, share))


def _sub(form: Form, b: Builder) -> Gradients:
    return _summed(form, b, {0: b.gradient(), 1: b.op("Neg", b.gradient())})


def _mul(form: Form, b: Builder) -> Gradients:
    factors = {i: b.op("Mul", b.gradient(), b.input(1 - i)) for i in form.wanted}
    return _summed(form, b, factors)


def _div(form: Form, b: Builder) -> Gradients:
    """Dx = G / d;  dd = -y G / d."""
    quotient = b.op("Div", b.gradient(), b.input(1))
    return _summed(form, b, {0: quotient, 1: b.op("Neg", b.op("Mul", quotient, b.output()))})


def _pow(form: Form, b: Builder) -> Gradients:
    """Dx = G p x^(p-1);  dp = G y log x, 0 where x isn't positive."""
    x = b.input(0)
    exponent = b.cast(b.input(1))
    power = b.op("Pow", x, b.op("Sub", exponent, 1.0))
    slope = b.op("Mul", b.gradient(), b.op("Mul", exponent, power))
    safe = b.op("Where", b.op("Greater", x, 0.0), x, 1.0)
    growth = b.op("Mul", b.op("Mul", b.gradient(), b.output()), b.op("Log", safe))
    return _summed(form, b, {0: slope, 1: growth})


def _extreme(form: Form, b: Builder) -> Gradients:
    """Max and Min: the first operand that equals the output takes G."""
    left, found = b.gradient(), {}
    for index in range(len(form.node.inputs)):
        mask = b.cast(b.op("Equal", b.input(index), b.output()))
        found[index] = b.op("Mul", left, mask)
        left = b.op("Sub", left, found[index])
    return _summed(form, b, {index: found[index] for index in form.wanted})


def _where(form: Form, b: Builder) -> Gradients:
    """Each branch takes the G of the elements that came from it."""
    g = b.gradient()
    first, second = b.op("Where", b.input(0), g, 0.0), b.op("Where", b.input(0), 0.0, g)
    return _summed(form, b, {1: first, 2: second})


def _prelu(form: Form, b: Builder) -> Gradients:
    """Dx = G where x > 0, G slope elsewhere; dslope = sum of G x where x <= 0."""
    x, mask = b.input(0), b.positive(b.input(0))
    rest = b.op("Sub", 1.0, mask)
    factor = b.op("Add", mask, b.op("Mul", rest, b.input(1)))
    spread = b.op("Mul", b.op("Mul", b.gradient(), x), rest)
    return _summed(form, b, {0: b.op("Mul", b.gradient(), factor), 1: spread})


def _clip(form: Form, b: Builder) -> Gradients:
    """Dx = G m inside; each bound takes the G of the elements that it replaced."""
    x, g = b.input(0), b.gradient()
    inner = {}
    if form.has(1):
        inner[1] = b.op("Sub", x, b.input(1))
    if form.has(2):
        inner[2] = b.op("Sub", b.input(2), x)
    distance = b.op("Mul", *inner.values()) if len(inner) == 2 else next(iter(inner.values()), None)
    found = {0: g if distance is None else b.op("Mul", g, b.positive(distance))}
    for index in form.wanted & inner.keys():
        outside = b.positive(b.op("Neg", inner[index]))
        found[index] = b.reshape_like(b.total(b.op("Mul", g, outside)), b.input(index))
    return found


def _cast(form: Form, b: Builder) -> Gradients:
    return {0: b.op("Cast", b.gradient(), to=int(b.input().dtype or ir.DataType.FLOAT))}


ELEMENTWISE = {
    "Add": Rule(_sum),
    "Cast": Rule(_cast),
    "Clip": Rule(_clip),
    "Div": Rule(_div),
    "Expand": Rule(lambda form, b: _summed(form, b, {0: b.gradient()})),
    "Max": Rule(_extreme),
    "Mean": Rule(_mean),
    "Min": Rule(_extreme),
    "Mul": Rule(_mul),
    "PRelu": Rule(_prelu),
    "Pow": Rule(_pow),
    "Sub": Rule(_sub),
    "Sum": Rule(_sum),
    "Where": Rule(_where),
}
