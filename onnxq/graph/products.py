"""Matrix products and their equations: MatMul, Gemm, Einsum."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.graph.facts import is_op, rank, tensor_of
from onnxq.graph.operators import TABLE, WEIGHT_OPERATORS

NO_PRODUCT = "its equation is no product of an input with weights: "
_ELLIPSIS = "..."


@dataclass(frozen=True)
class Product:
    """A product `x·W` of matrices, by the letters of its Einsum equation.

    Attributes:
        data: letters of the data, in their order.
        weight: letters of the weights, in their order.
        result: letters of the result, in their order.
        data_only: letters of the data alone, in the order of the result.
        summed: letters of both that the result lacks, in the order of the weights.
        weight_only: letters of the weights alone, in the order of the result.
        batch: letters of all three, in the order of the result.
    """

    data: str
    weight: str
    result: str
    data_only: str
    summed: str
    weight_only: str
    batch: str


def as_product(equation: str, ranks: Sequence[int], weight: int) -> Product | str:
    """The product of an equation with two operands, or why it is none.

    Args:
        equation: as the node has it; an ellipsis and a missing result are expanded.
        ranks: of the operands.
        weight: index of the operand with the weights.
    """
    terms = _terms(equation.replace(" ", ""), ranks)
    if isinstance(terms, str):
        return terms
    (left, right), result = terms
    data, weights = (right, left) if weight == 0 else (left, right)
    for letters in (data, weights, result):
        if len(set(letters)) < len(letters):
            return f"{NO_PRODUCT}an index stands twice in a term of '{equation}'"
    alone = [c for c in data + weights if c not in result and not (c in data and c in weights)]
    if alone:
        return f"{NO_PRODUCT}'{alone[0]}' is summed in one operand alone in '{equation}'"
    product = Product(
        data,
        weights,
        result,
        data_only="".join(c for c in result if c in data and c not in weights),
        summed="".join(c for c in weights if c in data and c not in result),
        weight_only="".join(c for c in result if c in weights and c not in data),
        batch="".join(c for c in result if c in data and c in weights),
    )
    if not product.summed or not product.weight_only:
        return f"{NO_PRODUCT}'{equation}' multiplies elements or gives one number per row"
    return product


def _terms(equation: str, ranks: Sequence[int]) -> tuple[list[str], str] | str:
    """The letters of the operands and of the result, without an ellipsis."""
    left, arrow, result = equation.partition("->")
    operands = left.split(",")
    if len(operands) != len(ranks):
        return f"{NO_PRODUCT}'{equation}' has {len(operands)} operands"
    hidden = [
        count - len(term.replace(_ELLIPSIS, ""))
        for term, count in zip(operands, ranks, strict=True)
    ]
    if any(
        count < 0 or (count > 0 and _ELLIPSIS not in term)
        for term, count in zip(operands, hidden, strict=True)
    ):
        return f"{NO_PRODUCT}'{equation}' does not fit the ranks of its operands"
    free = [c for c in string.ascii_letters if c not in equation]
    count = max(hidden)
    if count > len(free):
        return f"{NO_PRODUCT}'{equation}' has too many indices"
    named = "".join(free[:count])
    if not arrow:
        letters = sorted(c for c in left if c.isalpha() and left.count(c) == 1)
        result = (_ELLIPSIS if _ELLIPSIS in left else "") + "".join(letters)
    terms = [
        term.replace(_ELLIPSIS, named[count - own :])
        for term, own in zip(operands, hidden, strict=True)
    ]
    return terms, result.replace(_ELLIPSIS, named)


SHARED = "other nodes, which are no layers, read its weights too"


def may_copy(value: ir.Value | None) -> bool:
    """Whether another form of a constant makes no larger file: all its readers read integers."""
    layers = (*WEIGHT_OPERATORS, TABLE, "Einsum")
    return (
        value is not None
        and not value.is_graph_output()
        and all(is_op(use.node, *layers) for use in value.uses())
    )


def left_refusal(node: ir.Node) -> str | None:
    """Why a MatMul or Gemm can't have its first operand as weights; None where it can."""
    weight = tensor_of(node.inputs[0])
    if weight is None or tensor_of(node.inputs[1]) is not None:
        return "its first operand is not its weights"
    if not weight.dtype.is_floating_point():
        return f"its weights are {weight.dtype.name.lower()}"
    if len(weight.shape) < 2:
        return f"its weights have {len(weight.shape)} dimension"
    if node.op_type == "Gemm":
        return None
    if rank(node.inputs[1]) in (None, 0):
        return "its weights are its first operand, and the rank of the second is not known"
    return None if may_copy(node.inputs[0]) else SHARED


def einsum_refusal(node: ir.Node) -> str | None:
    """Why an Einsum can't be a product with weights; None where it can."""
    product = einsum_product(node)
    if isinstance(product, str):
        return product
    weight = node.inputs[constant_operand(node)]
    tensor = tensor_of(weight)
    if tensor is None or not tensor.dtype.is_floating_point():
        return "its weights are not float"
    return None if may_copy(weight) else SHARED


def constant_operand(node: ir.Node) -> int:
    """The index of the constant operand of an Einsum of an input and a constant."""
    return 1 if tensor_of(node.inputs[0]) is None else 0


def einsum_product(node: ir.Node) -> Product | str:
    """The product of an Einsum of an input and a constant, or why it is none."""
    equation = node.attributes.get_string("equation", "")
    if len(node.inputs) != 2:
        return f"{NO_PRODUCT}'{equation}' has {len(node.inputs)} operands"
    if sum(tensor_of(value) is None for value in node.inputs) != 1:
        return "it has no constant operand beside a computed one"
    ranks = [count for value in node.inputs if (count := rank(value)) is not None]
    if len(ranks) < 2:
        return "the rank of its input is not known"
    product = as_product(str(equation), ranks, constant_operand(node))
    if isinstance(product, Product) and _spreads(product, node):
        return f"{NO_PRODUCT}an index of '{equation}' has two sizes, one of which is 1"
    return product


def _spreads(product: Product, node: ir.Node) -> bool:
    """Whether one operand is broadcast along an index that both have, as Einsum allows."""
    index = constant_operand(node)
    weight, data = tensor_of(node.inputs[index]), node.inputs[1 - index]
    assert weight is not None and data is not None and data.shape is not None
    sizes = dict(zip(product.weight, weight.shape.numpy(), strict=True))
    for letter in product.batch + product.summed:
        found = data.shape[product.data.index(letter)]
        if found != sizes[letter] and (isinstance(found, int) or sizes[letter] == 1):
            return True
    return False
