"""Products of an input with constant weights in forms that are no layer's: can they become one?"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.einsum import NO_PRODUCT, Product, as_product

SHARED = "other nodes, which are no layers, read its weights too"

_QUANTIZED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "Gather"})
"""Operators whose weights become integers, so that a second arrangement is smaller than a float."""


def may_copy(value: ir.Value | None) -> bool:
    """Whether a new form of a constant makes no larger file: all that read it read integers."""
    return (
        value is not None
        and not value.is_graph_output()
        and all(
            use.node.op_type in _QUANTIZED and use.node.domain in ("", "ai.onnx")
            for use in value.uses()
        )
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
    if _rank(node.inputs[1]) in (None, 0):
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
    """Which operand of an Einsum of an input and a constant is the constant."""
    return 1 if tensor_of(node.inputs[0]) is None else 0


def einsum_product(node: ir.Node) -> Product | str:
    """The product that an Einsum of an input and a constant is, or why it is none."""
    equation = node.attributes.get_string("equation", "")
    if len(node.inputs) != 2:
        return f"{NO_PRODUCT}'{equation}' has {len(node.inputs)} operands"
    if sum(tensor_of(value) is None for value in node.inputs) != 1:
        return "it has no constant operand beside a computed one"
    ranks = [count for value in node.inputs if (count := _rank(value)) is not None]
    if len(ranks) < 2:
        return "the rank of its input is not known"
    product = as_product(str(equation), ranks, constant_operand(node))
    if isinstance(product, Product) and _spreads(product, node):
        return f"{NO_PRODUCT}an index of '{equation}' has two sizes, one of which is 1"
    return product


def tensor_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a constant; None for what is computed or fed."""
    if value is None or value.is_graph_input():
        return None
    return ir.convenience.get_const_tensor(value)


def _spreads(product: Product, node: ir.Node) -> bool:
    """Whether one operand is repeated along an index that both have, as Einsum allows."""
    index = constant_operand(node)
    weight, data = tensor_of(node.inputs[index]), node.inputs[1 - index]
    assert weight is not None and data is not None and data.shape is not None
    sizes = dict(zip(product.weight, weight.shape.numpy(), strict=True))
    for letter in product.batch + product.summed:
        found = data.shape[product.data.index(letter)]
        if found != sizes[letter] and (isinstance(found, int) or sizes[letter] == 1):
            return True
    return False


def _rank(value: ir.Value | None) -> int | None:
    tensor = tensor_of(value)
    if tensor is not None:
        return len(tensor.shape)
    return None if value is None or value.shape is None else len(value.shape)
