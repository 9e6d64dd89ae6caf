"""Gradients of products of matrices; G = dL/dy."""

from __future__ import annotations

import string

import onnx_ir as ir

from onnxq.engine.builder import Builder
from onnxq.engine.form import Form, Gradients, Rule
from onnxq.engine.sums import same_dimensions, unbroadcast


def _matmul(form: Form, b: Builder) -> Gradients:
    """DA = G Bᵀ, dB = Aᵀ G; a vector counts as a matrix with one row or one column."""
    left, right, g = b.input(0), b.input(1), b.gradient()
    ranks = form.rank(0) or 0, form.rank(1) or 0
    if ranks[1] == 1:
        right, g = b.op("Unsqueeze", right, [1]), b.op("Unsqueeze", g, [-1])
    if ranks[0] == 1:
        left, g = b.op("Unsqueeze", left, [0]), b.op("Unsqueeze", g, [-2])
    found = {}
    if 0 in form.wanted:
        found[0] = b.op("MatMul", g, _transposed(b, right, ranks[1]))
    if 1 in form.wanted and ranks[1] == 2:
        found[1] = b.op("Gemm", _rows(b, left), _rows(b, g), transA=1)
    elif 1 in form.wanted:
        found[1] = b.op("MatMul", _transposed(b, left, ranks[0]), g)
    return {i: _summed(b, each, form, i) for i, each in found.items()}


def _transposed(b: Builder, matrices: ir.Value, rank: int) -> ir.Value:
    rank = max(rank, 2)
    return b.op("Transpose", matrices, perm=[*range(rank - 2), rank - 1, rank - 2])


def _rows(b: Builder, x: ir.Value) -> ir.Value:
    """All dimensions but the last as one."""
    width = b.op("Slice", b.op("Shape", x), [-1], [1000])
    return b.op("Reshape", x, b.op("Concat", [-1], width, axis=0))


def _summed(b: Builder, gradient: ir.Value, form: Form, index: int) -> ir.Value:
    """A gradient summed over the dimensions along which one batch of matrices was repeated."""
    own, other = form.node.inputs[index], form.node.inputs[1 - index]
    assert own is not None and other is not None and own.shape and other.shape
    if len(own.shape) == 1:
        rank = max(len(other.shape), 2)
        axes = list(range(rank - 2))
        return b.reshape_like(b.reduce("ReduceSum", gradient, axes), own)
    alone = len(other.shape) <= 2 or (index == 1 and len(own.shape) == 2)
    if alone or same_dimensions(own.shape[:-2], other.shape[:-2]):
        return gradient
    return unbroadcast(b, gradient, own, ir.val(None))


def _unknown_ranks(form: Form) -> str | None:
    known = form.rank(0) is not None and form.rank(1) is not None
    return None if known else "the ranks of its inputs are not known"


def _gemm(form: Form, b: Builder) -> Gradients:
    """Y = alpha A B + beta C, A and B transposed or not."""
    left, right, g = b.input(0), b.input(1), b.gradient()
    alpha, beta = form.number("alpha", 1.0), form.number("beta", 1.0)
    a, t = form.integer("transA", 0), form.integer("transB", 0)
    found = {
        0: (right, g, t, 1) if a else (g, right, 0, 1 - t),
        1: (g, left, 1, a) if t else (left, g, 1 - a, 0),
    }
    results = {
        index: b.op("Gemm", first, second, alpha=alpha, transA=ta, transB=tb)
        for index, (first, second, ta, tb) in found.items()
    }
    if 2 in form.wanted:
        scaled = g if beta == 1 else b.op("Mul", g, beta)
        results[2] = unbroadcast(b, scaled, b.input(2), b.output())
    return results


def _equation(form: Form) -> tuple[list[str], str] | None:
    """Letters of the operands and of the output; None where an ellipsis can't be spelt out."""
    text = form.text("equation", "").replace(" ", "")
    free = [letter for letter in string.ascii_letters if letter not in text]
    left, arrow, output = text.partition("->")
    operands = left.split(",")
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        dots = "..." if "..." in left else ""
        output = dots + "".join(sorted(each for each in letters if letters.count(each) == 1))
    extra = {
        (form.rank(index) or 0) - len(each) + 3
        for index, each in enumerate(operands)
        if "..." in each
    }
    if len(extra) > 1 or None in (form.rank(i) for i in range(len(operands))):
        return None
    spelt = "".join(free[: next(iter(extra), 0)])
    return [each.replace("...", spelt) for each in operands], output.replace("...", spelt)


def _einsum(form: Form, b: Builder) -> Gradients:
    """The same sum with G in the operand's place; a letter that is nowhere else is repeated."""
    operands, output = _equation(form) or ([], "")
    found = {}
    for index in form.wanted:
        values = [b.gradient(), *(b.input(i) for i in range(len(operands)) if i != index)]
        letters = [output, *(each for i, each in enumerate(operands) if i != index)]
        if set(operands[index]) - set("".join(letters)):
            values.append(b.filled_like(b.input(index), 1.0))
            letters.append(operands[index])
        equation = f"{','.join(letters)}->{operands[index]}"
        found[index] = b.op("Einsum", *values, equation=equation)
    return found


def _refuse_einsum(form: Form) -> str | None:
    equation = _equation(form)
    if equation is None:
        return "its '...' stands for dimensions that are not known"
    if any(len(set(each)) < len(each) for each in equation[0]):
        return "it takes a diagonal"
    return None


PRODUCTS = {
    "Einsum": Rule(_einsum, _refuse_einsum),
    "Gemm": Rule(_gemm),
    "MatMul": Rule(_matmul, _unknown_ranks),
}
