"""A constant on the left of a product goes to the right, where weights are looked for."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.graph.products import left_refusal
from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import constant, float_attribute, input_at, int_attribute, rank
from onnxq.normalise.gemm_to_plain import bias_as_added
from onnxq.normalise.passes import NodePass
from onnxq.normalise.weight_forms import rearranged


class LeftConstant(NodePass):
    """Turns `W·x` into `(xᵀ·Wᵀ)ᵀ`, on the last two axes, where W is constant.

    Transposes only move elements, in integers too. A Gemm keeps its W and reads it the other
    way round; of a vector x nothing is transposed but W. A weight of more than two
    dimensions is one matrix for each entry of a batch, and stays so.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"MatMul", "Gemm"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the node stays; None where the operands change places."""
        return left_refusal(node)

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """The product the other way round between two Transposes; it keeps the node's name."""
        if node.op_type == "Gemm":
            _turn_gemm(node, editor)
        else:
            _turn_matmul(node, editor)


def _turn_matmul(node: ir.Node, editor: Editor) -> None:
    weight, data = node.inputs[0], node.inputs[1]
    array, data_rank = constant(weight), rank(data)
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
        "alpha": float_attribute(node, "alpha", 1.0),
        "transA": 1 - int_attribute(node, "transB", 0),
        "transB": 1 - int_attribute(node, "transA", 0),
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
    """A constant bias of one number per row of the result, as one per column; None for others."""
    array = constant(bias)
    if array is None or (array.size > 1 and (array.ndim < 2 or array.shape[1] != 1)):
        return None
    return array.reshape(1, -1)


def _swapped(count: int) -> list[int]:
    return [*range(count - 2), count - 1, count - 2]
