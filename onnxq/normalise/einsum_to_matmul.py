"""Einsum with weights as MatMul, which has an integer kernel."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.normalise.editor import Editor
from onnxq.normalise.einsum_equation import NO_PRODUCT, Product, as_product
from onnxq.normalise.facts import constant, rank, static_dim, string_attribute
from onnxq.normalise.passes import NodePass
from onnxq.normalise.weight_forms import SHARED, may_copy, rearranged


class EinsumToMatMul(NodePass):
    """Replaces Einsum of an input and constant weights by Transpose → Reshape → MatMul → ….

    The input is brought to (kept, summed) and the weights to (summed, made), several indices
    as one; what comes out is brought to the order of the result. Indices of input, weights
    and result are a batch of products, with a matrix each.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Einsum"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the Einsum stays; None where it is a product of matrices."""
        found = _product(node)
        if isinstance(found, str):
            return found
        if not np.issubdtype(_weight_array(node).dtype, np.floating):
            return "its weights are not float"
        return None if may_copy(node.inputs[_weight_index(node)]) else SHARED

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """The nodes that are needed, in the place of the Einsum; the MatMul keeps its name."""
        product = _product(node)
        assert isinstance(product, Product)
        index, array = _weight_index(node), _weight_array(node)
        weight, data = node.inputs[index], node.inputs[1 - index]
        assert weight is not None
        sizes = dict(zip(product.weight, array.shape, strict=True))
        chain = _Chain(editor, node, data)
        order = _data_order(product)
        chain.transpose(product.data, order)
        rows = len(order) - len(product.summed)
        alone = bool(product.batch) and not product.kept
        if alone:
            chain.reshape([*([0] * len(product.batch)), 1, _count(product.summed, sizes)])
        elif len(product.summed) > 1:
            chain.reshape([*([0] * rows), _count(product.summed, sizes)])
        chain.multiply(_matrix(product, editor, weight, sizes))
        if alone or len(product.made) > 1:
            chain.reshape([*([0] * rows), *(sizes[c] for c in product.made)])
        chain.transpose(order[:rows] + product.made, product.result)
        editor.replace(node, chain.nodes)


class _Chain:
    """Nodes one after another, each reading the one before."""

    def __init__(self, editor: Editor, node: ir.Node, data: ir.Value | None) -> None:
        self.nodes: list[ir.Node] = []
        self._editor, self._name, self._last = editor, str(node.name), data

    def transpose(self, letters: str, wanted: str) -> None:
        """Bring the letters into the wanted order."""
        if letters != wanted:
            perm = [letters.index(c) for c in wanted]
            name = f"{self._name}_transpose"
            self._add(self._editor.node("Transpose", [self._last], {"perm": perm}, name=name))

    def reshape(self, shape: list[int]) -> None:
        """Give the shape, in which 0 keeps a size."""
        value = self._editor.initializer(f"{self._name}_shape", np.array(shape))
        name = f"{self._name}_reshape"
        self._add(self._editor.node("Reshape", [self._last, value], name=name))

    def multiply(self, matrix: ir.Value) -> None:
        """The product itself, under the name of the Einsum."""
        inputs = [self._last, matrix]
        self._add(self._editor.node("MatMul", inputs, name=self._name, keep_name=True))

    def _add(self, node: ir.Node) -> None:
        self.nodes.append(node)
        self._last = node.outputs[0]


def _matrix(product: Product, editor: Editor, weight: ir.Value, sizes: dict[str, int]) -> ir.Value:
    order = product.batch + product.summed + product.made
    shape = [*(sizes[c] for c in product.batch)]
    shape += [_count(product.summed, sizes), _count(product.made, sizes)]
    return rearranged(editor, weight, [product.weight.index(c) for c in order], shape)


def _data_order(product: Product) -> str:
    """The batch stands before the last two axes, where MatMul looks for it."""
    if not product.batch:
        return product.kept + product.summed
    return product.kept[:-1] + product.batch + product.kept[-1:] + product.summed


def _count(letters: str, sizes: dict[str, int]) -> int:
    return int(np.prod([sizes[c] for c in letters]))


def _weight_index(node: ir.Node) -> int:
    return 1 if constant(node.inputs[0]) is None else 0


def _weight_array(node: ir.Node) -> np.ndarray:
    array = constant(node.inputs[_weight_index(node)])
    assert array is not None
    return array


def _product(node: ir.Node) -> Product | str:
    """What the equation means; why it means nothing of the kind."""
    equation, known = string_attribute(node, "equation", ""), [rank(v) for v in node.inputs]
    if len(node.inputs) != 2:
        return f"{NO_PRODUCT}'{equation}' has {len(node.inputs)} operands"
    if sum(constant(value) is None for value in node.inputs) != 1:
        return "it has no constant operand beside a computed one"
    ranks = [count for count in known if count is not None]
    if len(ranks) < 2:
        return "the rank of its input is not known"
    product = as_product(equation, ranks, _weight_index(node))
    if isinstance(product, Product) and _spreads(product, node):
        return f"{NO_PRODUCT}an index of '{equation}' has two sizes, one of which is 1"
    return product


def _spreads(product: Product, node: ir.Node) -> bool:
    """Whether one operand is repeated along an index that both have, as Einsum allows."""
    data = node.inputs[1 - _weight_index(node)]
    sizes = dict(zip(product.weight, _weight_array(node).shape, strict=True))
    for letter in product.batch + product.summed:
        found = static_dim(data, product.data.index(letter))
        if found != sizes[letter] and (found is not None or sizes[letter] == 1):
            return True
    return False
