"""The gradient of a node: onnxq's own rule, the engine's own, or why there is no right one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from onnxq.engine.convolution import blocked_convolution
from onnxq.engine.definition import Definition, Form, Rule, make_form
from onnxq.engine.elementwise import elementwise_rules
from onnxq.engine.normalisations import normalisation_rules, reduction_rules
from onnxq.engine.spatial import pooling_rules, spatial_rules
from onnxq.graph.cut import ancestors, dependents
from onnxq.graph.facts import has_subgraph, reads
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


# fmt: off
RIGHT = frozenset((
    "Abs", "Add", "Cast", "Concat", "Cos", "Div", "Erf", "Exp", "Expand", "Flatten", "Gather",
    "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "Identity", "LeakyRelu",
    "Log", "LogSoftmax", "Max", "Min", "Mul", "Neg", "Reciprocal", "ReduceL2",
    "ReduceLogSumExp", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Sigmoid", "Sin",
    "Softmax", "Sqrt", "Squeeze", "Sub", "Tanh", "Tile", "TopK", "Transpose", "Trilu",
    "Unsqueeze",
))
# fmt: on
"""Operators whose gradient is right in every form that was tried."""


def refuse_builtin(form: Form) -> str | None:
    """Why the engine has no right gradient for a form; None where it has one."""
    node = form.node
    if node.domain != "":
        return f"no gradient is known for the domain '{node.domain}'"
    if node.op_type in RIGHT:
        return _axes_before_18(form)
    if node.op_type in FORMS:
        return FORMS[node.op_type](form)
    return "no gradient is known for it"


def _axes_before_18(form: Form) -> str | None:
    node = form.node
    reduces = node.op_type in ("ReduceL2", "ReduceLogSumExp") and form.opset < 18
    if reduces and not node.attributes.get_int("keepdims", 1):
        return "without keepdims it has a gradient from opset 18 on only"
    return None


def _explicit_pads(form: Form) -> str | None:
    if form.node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID"):
        return None
    return "with auto_pad the engine's gradient is wrong; write it as explicit pads"


def _known_size(form: Form) -> str | None:
    dims = form.dimensions(form.node.inputs[0]) or (None, None)
    if all(isinstance(dim, int) for dim in dims[1:]):
        return None
    return "the size of its input is not known, and its gradient takes it from the graph"


def _matrices(form: Form) -> str | None:
    if all((form.rank(index) or 2) >= 2 for index in (0, 1)):
        return None
    return "one of its inputs is a vector"


def _constant_exponent(form: Form) -> str | None:
    return "its exponent depends on a trained value" if 1 in form.wanted else None


def _constant_pad(form: Form) -> str | None:
    mode = form.node.attributes.get_string("mode", "constant")
    return None if mode == "constant" else f"mode '{mode}' has no gradient"


def _no_reduction(form: Form) -> str | None:
    reduction = form.node.attributes.get_string("reduction", "none")
    return None if reduction == "none" else f"its gradient is wrong with reduction '{reduction}'"


def _all_parts_used(form: Form) -> str | None:
    if all(value.uses() or value.is_graph_output() for value in form.node.outputs):
        return None
    return "its gradient is wrong where a part is unused; write it as Slice"


def _forward_steps(form: Form) -> str | None:
    steps = form.constant(4)
    if not form.has(4) or (steps is not None and (steps > 0).all()):
        return None
    return "a negative step has no gradient"


def _probabilities(form: Form) -> str | None:
    return None if len(form.node.outputs) == 2 else "it needs its second output, log_prob"


FORMS: dict[str, Callable[[Form], str | None]] = {
    "Conv": _explicit_pads,
    "MatMul": _matrices,
    "MaxPool": _known_size,
    "Pad": _constant_pad,
    "Pow": _constant_exponent,
    "ScatterElements": _no_reduction,
    "ScatterND": _no_reduction,
    "Slice": _forward_steps,
    "SoftmaxCrossEntropyLoss": _probabilities,
    "Split": _all_parts_used,
}
"""Operators whose gradient is right in some forms, with what they are asked."""


FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
)


def infer_types(model: ir.Model) -> None:
    """Fill in types and shapes, in place."""
    common_passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)


def carrying_values(
    graph: ir.Graph, trainable: Sequence[str], losses: Sequence[str]
) -> set[ir.Value]:
    """The float values that depend on a trainable input and that a loss depends on.

    Integer and boolean values end a path: shapes, indices and conditions have no gradient.
    A value of unknown type counts as float.

    Args:
        graph: main graph, sorted topologically; types should have been inferred.
        trainable: names of graph inputs.
        losses: names of graph outputs.
    """
    names = {*trainable, *losses}
    inputs = [value for value in graph.inputs if value.name in names]
    ends = [value for value in graph.outputs if value.name in names]
    return dependents(graph, inputs, is_float) & ancestors(graph, ends)


def carrying_nodes(graph: ir.Graph, carrying: set[ir.Value]) -> list[ir.Node]:
    """The nodes that a gradient passes through, in the graph's order."""
    return [
        node
        for node in graph
        if carrying.intersection(node.outputs) and carrying.intersection(reads(node))
    ]


def is_float(value: ir.Value) -> bool:
    """Whether a value may carry a gradient."""
    return value.dtype is None or value.dtype in FLOATS


def ungradable_nodes(
    model: ir.Model, trainable: Sequence[str], losses: Sequence[str] | None = None
) -> list[tuple[str, str, str]]:
    """The nodes that a gradient would have to pass but can't, as (name, op type, reason).

    Some forms of operators have no gradient, others would silently get a wrong one; both
    are found from the graph alone. Nothing is built or run.

    Args:
        model: a model; it isn't changed.
        trainable: names of float graph inputs.
        losses: names of graph outputs that the gradient starts from; None means all.
    """
    typed = model.clone()
    infer_types(typed)
    outputs = [str(value.name) for value in typed.graph.outputs] if losses is None else losses
    carrying = carrying_values(typed.graph, trainable, outputs)
    return ungradable(typed, carrying)


def ungradable(model: ir.Model, carrying: set[ir.Value]) -> list[tuple[str, str, str]]:
    """The same for a model with types and the values known to carry a gradient."""
    opset = model.opset_imports.get("", 0)
    return [
        (node.name or "", node.op_type, reason)
        for node in carrying_nodes(model.graph, carrying)
        if (reason := _refuse(make_form(node, carrying, opset))) is not None
    ]


def _refuse(form: Form) -> str | None:
    if has_subgraph(form.node):
        return "gradients do not pass through its sub-graphs"
    rule = find_rule(form)
    return refuse_builtin(form) if rule is None else rule.refuse(form)
