"""Nodes with constant weights that are no layers in the sense of the plan, and why."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.products import einsum_refusal, left_refusal
from onnxq.plan.operators import FUSED_OPERATORS, RECURRENT_OPERATORS, constant

_OTHER_OPERATORS = ("DeformConv",)
"""Operators with weights of a layer that ONNX Runtime computes in float alone."""


def has_weights_left(node: ir.Node) -> bool:
    """Whether the weights of a product are its first operand, where no layer has them."""
    return constant(node.inputs[0]) is not None and constant(node.inputs[1]) is None


def has_weights(node: ir.Node) -> bool:
    """Whether an input is constant, or computed from constants alone as in a sub-graph."""
    return any(_is_weight(value) or comes_of_constants(value) for value in node.inputs)


def refusal_of_weights(node: ir.Node) -> str | None:
    """Why a node that is no layer can't have integer weights; None where it has no weights.

    Normalisation has brought to a layer's form what it can; what is left
    has the reason that kept it from being done.
    """
    if node.op_type in FUSED_OPERATORS:
        return (
            f"{node.op_type} is a form of ONNX Runtime's optimizer; give the model as it was "
            "exported"
        )
    if node.domain:
        return _outside(node)
    if node.op_type in RECURRENT_OPERATORS:
        return f"{node.op_type} has no integer kernel with a learned range"
    if not any(_is_weight(value) for value in node.inputs):
        return None
    if node.op_type == "Einsum":
        return einsum_refusal(node)
    if node.op_type in ("MatMul", "Gemm"):
        return left_refusal(node)
    if node.op_type in _OTHER_OPERATORS:
        return f"{node.op_type} has no integer kernel"
    return None


def _outside(node: ir.Node) -> str | None:
    matrices = [value for value in node.inputs if _is_weight(value) and _rank(value) > 1]
    return f"{node.domain}::{node.op_type} has no integer kernel" if matrices else None


def comes_of_constants(value: ir.Value | None) -> bool:
    """Whether a value is computed from constants alone."""
    node = None if value is None else value.producer()
    if node is None or not node.inputs:
        return node is not None and node.op_type == "Constant"
    return all(
        each is None or each.const_value is not None or comes_of_constants(each)
        for each in node.inputs
    )


def _is_weight(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and array.dtype.kind == "f" and array.size > 1


def _rank(value: ir.Value | None) -> int:
    array = constant(value)
    return 0 if array is None else array.ndim
