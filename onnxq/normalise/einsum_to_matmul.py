"""Einsum with weights as MatMul, which has an integer kernel."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.graph.einsum import Product
from onnxq.graph.products import constant_operand, einsum_product, einsum_refusal
from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import constant
from onnxq.normalise.passes import NodePass
from onnxq.normalise.weight_forms import rearranged


class EinsumToMatMul(NodePass):
    """Replaces Einsum of an input and constant weights by Transpose → Reshape → MatMul → ….

    The input is brought to (kept, summed) and the weights to (summed, made), several indices
    as one; what comes out is brought to the order of the result. Indices of input, weights
    and result are a batch of products, with a matrix each.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Einsum"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the Einsum stays; None where it is a product of matrices."""
        return einsum_refusal(node)

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """The nodes that are needed, in the place of the Einsum; the MatMul keeps its name."""
        product, index = einsum_product(node), constant_operand(node)
        weight, data = node.inputs[index], node.inputs[1 - index]
        array = constant(weight)
        assert isinstance(product, Product) and weight is not None and array is not None
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
