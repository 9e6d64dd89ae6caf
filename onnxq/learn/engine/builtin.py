"""What the engine's own gradients can do, found by finite differences at opsets 13 to 21."""

from __future__ import annotations

from collections.abc import Callable

from onnxq.learn.engine.form import Form

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
    reductions = ("ReduceL2", "ReduceLogSumExp")
    if form.node.op_type in reductions and form.opset < 18 and not form.integer("keepdims", 1):
        return "without keepdims it has a gradient from opset 18 on only"
    return None


def _explicit_pads(form: Form) -> str | None:
    if form.string("auto_pad", "NOTSET") in ("NOTSET", "VALID"):
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
    mode = form.string("mode", "constant")
    return None if mode == "constant" else f"mode '{mode}' has no gradient"


def _no_reduction(form: Form) -> str | None:
    reduction = form.string("reduction", "none")
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
