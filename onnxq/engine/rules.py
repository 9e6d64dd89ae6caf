"""The one table of rules: how each operator is differentiated."""

from __future__ import annotations

from collections.abc import Mapping

from onnxq.engine.fake_quant import fake_quant_rule
from onnxq.engine.form import Form, Rule
from onnxq.engine.rules_activations import ACTIVATIONS
from onnxq.engine.rules_convolution import CONVOLUTIONS
from onnxq.engine.rules_elementwise import ELEMENTWISE
from onnxq.engine.rules_layout import LAYOUT
from onnxq.engine.rules_normalisations import NORMALISATIONS
from onnxq.engine.rules_pooling import POOLS
from onnxq.engine.rules_products import PRODUCTS
from onnxq.engine.rules_reductions import LOSSES, REDUCTIONS
from onnxq.engine.rules_resize import RESIZE
from onnxq.graph.facts import DEFAULT_DOMAINS
from onnxq.graph.fake_quant import DOMAIN as FAKE_QUANT_DOMAIN
from onnxq.graph.fake_quant import parse_function_name

RULES: Mapping[str, Rule] = {
    **ACTIVATIONS,
    **CONVOLUTIONS,
    **ELEMENTWISE,
    **LAYOUT,
    **LOSSES,
    **NORMALISATIONS,
    **POOLS,
    **PRODUCTS,
    **REDUCTIONS,
    **RESIZE,
}
"""By operator of the default domain."""


def find_rule(form: Form) -> Rule | None:
    """The rule for a node; None where there is none."""
    node = form.node
    if node.domain == FAKE_QUANT_DOMAIN:
        parsed = parse_function_name(node.op_type)
        return None if parsed is None else fake_quant_rule(*parsed)
    return RULES.get(node.op_type) if node.domain in DEFAULT_DOMAINS else None
