"""What an Einsum of two operands means as a product of matrices."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

NO_PRODUCT = "its equation is no product of an input with weights: "
_ELLIPSIS = "..."


@dataclass(frozen=True)
class Product:
    """A product `x·W` of matrices, by the letters of the equation.

    Attributes:
        data: letters of the data, in their order.
        weight: letters of the weights, in their order.
        result: letters of the result, in their order.
        kept: letters of the data alone, in the order of the result.
        summed: letters of both that the result lacks, in the order of the weights.
        made: letters of the weights alone, in the order of the result.
        batch: letters of all three, in the order of the result.
    """

    data: str
    weight: str
    result: str
    kept: str
    summed: str
    made: str
    batch: str


def as_product(equation: str, ranks: Sequence[int], weight: int) -> Product | str:
    """The product that an equation of two operands is, or why it is none.

    Args:
        equation: as the node has it; an ellipsis and a result left out are understood.
        ranks: of the operands.
        weight: which operand is the weights.
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
        kept="".join(c for c in result if c in data and c not in weights),
        summed="".join(c for c in weights if c in data and c not in result),
        made="".join(c for c in result if c in weights and c not in data),
        batch="".join(c for c in result if c in data and c in weights),
    )
    if not product.summed or not product.made:
        return f"{NO_PRODUCT}'{equation}' multiplies elements or gives one number per row"
    return product


def _terms(equation: str, ranks: Sequence[int]) -> tuple[list[str], str] | str:
    """The letters of the operands and of the result, without an ellipsis."""
    left, arrow, result = equation.partition("->")
    operands = left.split(",")
    if len(operands) != len(ranks):
        return f"{NO_PRODUCT}'{equation}' has {len(operands)} operands"
    hidden = [
        rank - len(term.replace(_ELLIPSIS, "")) for term, rank in zip(operands, ranks, strict=True)
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
