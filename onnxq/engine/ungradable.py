"""Nodes between the trainable inputs and the loss that have no right gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from onnxq.engine.definition import Form, make_form
from onnxq.engine.gradients import find_rule
from onnxq.graph.cut import ancestors, dependents
from onnxq.graph.facts import has_subgraph, reads

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
