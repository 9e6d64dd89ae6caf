"""The gradients that onnxq defines itself; every other one is the engine's own."""

from __future__ import annotations

from functools import cache, partial

from onnxq.engine.convolution import blocked_convolution
from onnxq.engine.definition import Definition, Form, Rule
from onnxq.engine.elementwise import elementwise_rules
from onnxq.engine.normalisations import normalisation_rules, reduction_rules
from onnxq.engine.spatial import pooling_rules, spatial_rules
from onnxq.graph.fake_quant import DOMAIN as FAKE_QUANT_DOMAIN
from onnxq.graph.fake_quant import parse_function_name
from onnxq.numerics.quantizers import ACTIVATIONS, Kind


def _fake_quant(kind: Kind, num_bits: int, form: Form, definition: Definition) -> None:
    """The gradients of one fake-quant function, straight-through inside the range.

    With m = 1 where x is rounded without being clipped and 0 elsewhere, G = dL/dy, y the output
    and ``lo`` the real value of the integer 0 (FAT, Goncharenko et al. 2019, section 3, with the
    range recomputed from the rounded zero point):

        dL/dx         = G m
        dL/dlowest    = sum G (1 - m)
        dL/dwidth     = (sum G y - sum G m x - lo sum G (1 - m)) / width
        dL/dthreshold = (sum G y - sum G m x) / threshold

    The last but one line is dy/dwidth = 1 above the range, 0 below it, (y - x) / width inside.
    """
    {"asymmetric": _asymmetric, "positive": _positive, "symmetric": _symmetric}[kind](
        definition, num_bits
    )


def _positive(d: Definition, num_bits: int) -> None:
    x, width = d.input(0), d.input(1)
    half_step = d.op("Mul", width, d.scalar(0.5 / ACTIVATIONS["positive"].steps(num_bits)))
    above = d.op("Sub", d.op("Add", width, half_step), x)
    dx = d.op("Mul", d.gradient(), d.positive(d.op("Mul", above, x)))
    d.result(0, dx)
    d.result(1, d.op("Div", _surplus(d, dx), width))


def _symmetric(d: Definition, num_bits: int) -> None:
    x, threshold = d.input(0), d.input(1)
    quantizer = ACTIVATIONS["symmetric"]
    zero, steps = quantizer.fixed_zero_point(num_bits), quantizer.steps(num_bits)
    upper = d.op("Mul", threshold, d.scalar((steps + 0.5) / steps))
    lower = d.op("Mul", threshold, d.scalar(-(zero + 0.5) / steps))
    dx = _pass_inside(d, x, lower, upper)
    d.result(0, dx)
    d.result(1, d.op("Div", _surplus(d, dx), threshold))


def _asymmetric(d: Definition, num_bits: int) -> None:
    x, lowest, width = (d.input(i) for i in range(3))
    largest = d.scalar(ACTIVATIONS["asymmetric"].largest(num_bits))
    scale = d.op("Div", width, largest)
    position = d.op("Round", d.op("Div", d.op("Neg", lowest), scale))
    zero_point = d.op("Clip", position, d.scalar(0.0), largest)
    reached = d.op("Neg", d.op("Mul", scale, zero_point))
    half_step = d.op("Mul", scale, d.scalar(0.5))
    lower = d.op("Sub", reached, half_step)
    upper = d.op("Add", d.op("Add", reached, width), half_step)
    dx = _pass_inside(d, x, lower, upper)
    clipped = d.op("Sub", d.total(d.gradient()), d.total(dx))
    surplus = d.op("Sub", _surplus(d, dx), d.op("Mul", reached, clipped))
    d.result(0, dx)
    d.result(1, clipped)
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


@cache
def all_rules() -> dict[str, Rule]:
    """Every rule by operator of the default domain."""
    return {
        **elementwise_rules(),
        **normalisation_rules(),
        **reduction_rules(),
        **pooling_rules(),
        **spatial_rules(),
    }


def find_rule(form: Form) -> Rule | None:
    """The rule for a node; None where the engine's own gradient is right or none exists."""
    node = form.node
    if node.domain == FAKE_QUANT_DOMAIN:
        parsed = parse_function_name(node.op_type)
        return None if parsed is None else Rule(partial(_fake_quant, *parsed))
    if node.domain == "" and node.op_type == "Conv":
        return blocked_convolution(form)
    return all_rules().get(node.op_type) if node.domain == "" else None
