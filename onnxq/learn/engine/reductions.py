"""Gradients of reductions and running sums; G = dL/dy."""

from __future__ import annotations

from onnxq.learn.engine.definition import Definition
from onnxq.learn.engine.form import Form
from onnxq.learn.engine.rules import Rule


def _axes(form: Form) -> list[int] | None:
    """The axes that a Reduce operator removes; None where they aren't known."""
    given = form.integers("axes", [])
    if form.has(1):
        constant = form.constant(1)
        if constant is None:
            return None
        given = [int(axis) for axis in constant]
    if given or form.integer("noop_with_empty_axes", 0):
        return given
    rank = form.rank(0)
    return None if rank is None else list(range(rank))


def _unknown_axes(form: Form) -> str | None:
    return "its axes are not constant" if _axes(form) is None else None


def _extreme(form: Form, d: Definition, op_type: str, axes: list[int]) -> None:
    """Dx = G / count where x is the extreme, shared by the elements that tie."""
    x = d.input(0)
    extreme = d.reduce(op_type, x, axes, keepdims=1)
    mask = d.op("Cast", d.op("Equal", x, extreme), to=1)
    share = d.op("Div", _keep_dimensions(d, extreme), d.reduce("ReduceSum", mask, axes, keepdims=1))
    d.result(0, d.op("Mul", mask, share))


def _reduce_extreme(form: Form, d: Definition) -> None:
    _extreme(form, d, form.node.op_type, _axes(form) or [])


def _global_max_pool(form: Form, d: Definition) -> None:
    _extreme(form, d, "ReduceMax", list(range(2, form.rank(0) or 2)))


def _reduce_l1(form: Form, d: Definition) -> None:
    """Dx = G sign(x)."""
    kept = d.reduce("ReduceSum", d.input(0), _axes(form) or [], keepdims=1)
    d.result(0, d.op("Mul", d.op("Sign", d.input(0)), _keep_dimensions(d, kept)))


def _reduce_sum_square(form: Form, d: Definition) -> None:
    """Dx = 2 G x."""
    kept = d.reduce("ReduceSum", d.input(0), _axes(form) or [], keepdims=1)
    double = d.op("Mul", d.input(0), d.scalar(2.0))
    d.result(0, d.op("Mul", double, _keep_dimensions(d, kept)))


def _cum_sum(form: Form, d: Definition) -> None:
    """The running sum of G in the other direction."""
    reverse, exclusive = 1 - form.integer("reverse", 0), form.integer("exclusive", 0)
    d.result(0, d.op("CumSum", d.gradient(), d.input(1), reverse=reverse, exclusive=exclusive))


def _keep_dimensions(d: Definition, like: str) -> str:
    """G in the shape that keepdims=1 gives."""
    return d.op("Reshape", d.gradient(), d.op("Shape", like))


def reduction_rules() -> dict[str, Rule]:
    """The rules of this module by operator."""
    return {
        "CumSum": Rule(_cum_sum),
        "GlobalMaxPool": Rule(_global_max_pool, _unknown_rank),
        "ReduceL1": Rule(_reduce_l1, _unknown_axes),
        "ReduceMax": Rule(_reduce_extreme, _unknown_axes),
        "ReduceMin": Rule(_reduce_extreme, _unknown_axes),
        "ReduceSumSquare": Rule(_reduce_sum_square, _unknown_axes),
    }


def _unknown_rank(form: Form) -> str | None:
    return "the rank of its input is not known" if form.rank(0) is None else None
