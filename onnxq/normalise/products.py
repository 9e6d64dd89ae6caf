"""Products with a constant, rewritten to the forms that are layers.

Einsum, a constant as the first operand, and weights with leading ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.graph.editor import Editor
from onnxq.graph.facts import input_at, rank
from onnxq.graph.products import (
    SHARED,
    Product,
    constant_operand,
    einsum_product,
    einsum_refusal,
    left_refusal,
    may_copy,
)
from onnxq.graph.scaled_weight import weight_array
from onnxq.normalise.gemm import bias_as_added
from onnxq.normalise.passes import NodePass


def rearranged(
    editor: Editor, value: ir.Value, perm: Sequence[int], shape: Sequence[int]
) -> ir.Value:
    """The constant, transposed and reshaped; all readers that ask for the same form share it.

    Args:
        editor: of the graph that the constant is in.
        value: a constant; it isn't changed.
        perm: its axes in their new order.
        shape: the shape after that.
    """
    array = weight_array(value)
    assert array is not None
    if tuple(perm) == tuple(range(array.ndim)) and tuple(shape) == array.shape:
        return value
    key = f"arranged {tuple(perm)} {tuple(shape)}"
    known = value.meta.get(key)
    if isinstance(known, ir.Value) and known.graph is editor.graph:
        return known
    made = editor.initializer(str(value.name), np.transpose(array, perm).reshape(shape))
    value.meta[key] = made
    return made


class EinsumToMatMul(NodePass):
    """Replaces Einsum of an input and constant weights by Transpose → Reshape → MatMul → ….

    The input is rearranged to (kept, summed) and the weights to (summed, made), with several
    indices as one, and the product to the order of the result. Indices of input, weights and result
    are a batch of products, with one matrix each.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Einsum"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the Einsum stays; None where it is a product of matrices."""
        return einsum_refusal(node)

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """The needed nodes in place of the Einsum; the MatMul keeps its name."""
        product, index = einsum_product(node), constant_operand(node)
        weight, data = node.inputs[index], node.inputs[1 - index]
        array = weight_array(weight)
        assert isinstance(product, Product) and weight is not None and array is not None
        sizes = dict(zip(product.weight, array.shape, strict=True))
        chain = _Chain(editor, node, data)
        order = _data_order(product)
        chain.transpose(product.data, order)
        rows = len(order) - len(product.summed)
        alone = bool(product.batch) and not product.data_only
        if alone:
            chain.reshape([*([0] * len(product.batch)), 1, _count(product.summed, sizes)])
        elif len(product.summed) > 1:
            chain.reshape([*([0] * rows), _count(product.summed, sizes)])
        chain.multiply(_matrix(product, editor, weight, sizes))
        if alone or len(product.weight_only) > 1:
            chain.reshape([*([0] * rows), *(sizes[c] for c in product.weight_only)])
        chain.transpose(order[:rows] + product.weight_only, product.result)
        editor.replace(node, chain.nodes)


class _Chain:
    """Nodes one after another, each reading the one before."""

    def __init__(self, editor: Editor, node: ir.Node, data: ir.Value | None) -> None:
        self.nodes: list[ir.Node] = []
        self._editor, self._name, self._last = editor, str(node.name), data

    def transpose(self, letters: str, wanted: str) -> None:
        """Transpose to the wanted order of letters."""
        if letters != wanted:
            perm = [letters.index(c) for c in wanted]
            name = f"{self._name}_transpose"
            self._add(self._editor.node("Transpose", [self._last], {"perm": perm}, name=name))

    def reshape(self, shape: list[int]) -> None:
        """Reshape; 0 keeps a size."""
        value = self._editor.initializer(f"{self._name}_shape", np.array(shape))
        name = f"{self._name}_reshape"
        self._add(self._editor.node("Reshape", [self._last, value], name=name))

    def multiply(self, matrix: ir.Value) -> None:
        """Add the product, under the name of the Einsum."""
        inputs = [self._last, matrix]
        self._add(self._editor.node("MatMul", inputs, name=self._name, keep_name=True))

    def _add(self, node: ir.Node) -> None:
        self.nodes.append(node)
        self._last = node.outputs[0]


def _matrix(product: Product, editor: Editor, weight: ir.Value, sizes: dict[str, int]) -> ir.Value:
    order = product.batch + product.summed + product.weight_only
    shape = [*(sizes[c] for c in product.batch)]
    shape += [_count(product.summed, sizes), _count(product.weight_only, sizes)]
    return rearranged(editor, weight, [product.weight.index(c) for c in order], shape)


def _data_order(product: Product) -> str:
    """The order of the data's letters, with the batch before the last two axes for MatMul."""
    if not product.batch:
        return product.data_only + product.summed
    return product.data_only[:-1] + product.batch + product.data_only[-1:] + product.summed


def _count(letters: str, sizes: dict[str, int]) -> int:
    return int(np.prod([sizes[c] for c in letters]))


class LeftConstant(NodePass):
    """Rewrites `W·x` as `(xᵀ·Wᵀ)ᵀ`, on the last two axes, where W is constant.

    Transposes only move elements, in integers too. A Gemm keeps its W and reads it with the other
    transB; for a vector x only W is transposed. A weight of more than two dimensions is one matrix
    for each entry of a batch, and stays so.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"MatMul", "Gemm"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the node stays; None where the operands are swapped."""
        return left_refusal(node)

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """The swapped product between two Transposes; it keeps the node's name."""
        if node.op_type == "Gemm":
            _turn_gemm(node, editor)
        else:
            _turn_matmul(node, editor)


def _turn_matmul(node: ir.Node, editor: Editor) -> None:
    weight, data = node.inputs[0], node.inputs[1]
    array, data_rank = weight_array(weight), rank(data)
    assert weight is not None and array is not None and data_rank is not None
    perm = _swapped(array.ndim)
    turned = rearranged(editor, weight, perm, [array.shape[axis] for axis in perm])
    if data_rank == 1:
        product = editor.node("MatMul", [data, turned], name=str(node.name), keep_name=True)
        editor.replace(node, [product])
        return
    before = editor.node(
        "Transpose", [data], {"perm": _swapped(data_rank)}, name=f"{node.name}_transpose"
    )
    product = editor.node(
        "MatMul", [before.outputs[0], turned], name=str(node.name), keep_name=True
    )
    after = editor.node(
        "Transpose",
        [product.outputs[0]],
        {"perm": _swapped(max(data_rank, array.ndim))},
        name=f"{node.name}_transpose_back",
    )
    editor.replace(node, [before, product, after])


def _turn_gemm(node: ir.Node, editor: Editor) -> None:
    weight, data, bias = node.inputs[0], node.inputs[1], input_at(node, 2)
    attributes = {
        "alpha": node.attributes.get_float("alpha", 1.0),
        "transA": 1 - node.attributes.get_int("transB", 0),
        "transB": 1 - node.attributes.get_int("transA", 0),
    }
    inputs = [data, weight]
    before: list[ir.Node] = []
    after: list[ir.Node] = []
    if bias is not None:
        before, bias = bias_as_added(node, bias, editor)
    row = _as_row(bias)
    if row is not None:
        inputs.append(editor.initializer(f"{node.name}_bias", row))
    product = editor.node("Gemm", inputs, attributes, name=str(node.name), keep_name=True)
    back = editor.node(
        "Transpose", [product.outputs[0]], {"perm": [1, 0]}, name=f"{node.name}_transpose_back"
    )
    if bias is not None and row is None:
        after = [editor.node("Add", [back.outputs[0], bias], name=f"{node.name}_add")]
    editor.replace(node, [*before, product, back, *after])


def _as_row(bias: ir.Value | None) -> np.ndarray | None:
    """A constant bias of one number per row, as one per column; None for other biases."""
    array = weight_array(bias)
    if array is None or (array.size > 1 and (array.ndim < 2 or array.shape[1] != 1)):
        return None
    return array.reshape(1, -1)


def _swapped(count: int) -> list[int]:
    return [*range(count - 2), count - 1, count - 2]


class SqueezeWeight(NodePass):
    """Turns MatMul with weights (1, …, 1, K, N) into MatMul with (K, N), an integer kernel's form.

    Where the weights have more dimensions than the input, the input gets the ones.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"MatMul"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the weights stay; None where they become a matrix."""
        data, weight = node.inputs[0], weight_array(node.inputs[1])
        if weight is None or weight_array(data) is not None:
            return "its second operand is not its weights"
        if weight.ndim < 3 or any(size != 1 for size in weight.shape[:-2]):
            return "its weights have no leading ones, or not only those"
        if rank(data) in (None, 0):
            return "the rank of its input is not known"
        return None if may_copy(node.inputs[1]) else SHARED

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """MatMul, behind an Unsqueeze where the input lacks dimensions; it keeps its name."""
        data, weight, array = node.inputs[0], node.inputs[1], weight_array(node.inputs[1])
        count = rank(data)
        assert weight is not None and array is not None and count is not None
        matrix = rearranged(editor, weight, range(array.ndim), array.shape[-2:])
        # A vector is a row without its first dimension, and so is what comes of it.
        missing = array.ndim - max(count, 2)
        before = []
        if missing > 0:
            axes = editor.initializer(f"{node.name}_axes", np.arange(missing))
            before = [editor.node("Unsqueeze", [data, axes], name=f"{node.name}_unsqueeze")]
            data = before[0].outputs[0]
        product = editor.node("MatMul", [data, matrix], name=str(node.name), keep_name=True)
        editor.replace(node, [*before, product])
