"""The gradients that onnxq defines itself; every other one is the engine's own."""

from __future__ import annotations

from functools import cache, partial

from onnxq.engine.convolution import blocked_convolution
from onnxq.engine.definition import Definition, Form, Rule
from onnxq.engine.elementwise import elementwise_rules
from onnxq.engine.fake_quant import define_fake_quant
from onnxq.engine.normalisations import normalisation_rules, reduction_rules
from onnxq.engine.spatial import pooling_rules, spatial_rules
from onnxq.graph.fake_quant import DOMAIN as FAKE_QUANT_DOMAIN
from onnxq.graph.fake_quant import parse_function_name
from onnxq.numerics.quantizers import Kind


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


def _fake_quant(kind: Kind, num_bits: int, form: Form, definition: Definition) -> None:
    define_fake_quant(kind, num_bits, definition)
