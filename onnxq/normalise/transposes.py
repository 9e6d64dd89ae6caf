"""Transposes merged, and transposed weights read by a Gemm with transB."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.graph.editor import Editor
from onnxq.graph.facts import input_at, is_constant, is_op, producer, rank, static_dim
from onnxq.graph.scaled_weight import shares
from onnxq.normalise.passes import NodePass


class MergeTransposes(NodePass):
    """Replaces `Transpose(Transpose(x))` by one Transpose of x, or by x."""

    op_types: ClassVar[frozenset[str]] = frozenset({"Transpose"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the Transpose stays; None where it is merged with the one before."""
        source = node.inputs[0]
        first = producer(source)
        if first is None or not is_op(first, "Transpose"):
            return "it does not follow a Transpose"
        if _perm(first) is None or _perm(node) is None:
            return "its rank is not known"
        if _is_identity(_merged(first, node)) and node.outputs[0].is_graph_output():
            return "the graph returns what it gives"
        return None

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """One Transpose with the name of the second; readers of the first keep it."""
        assert node.inputs[0] is not None
        first = node.inputs[0].producer()
        assert first is not None and first.inputs[0] is not None
        perm = _merged(first, node)
        if _is_identity(perm):
            node.outputs[0].replace_all_uses_with(first.inputs[0])
            editor.remove([first, node])
            return
        name = str(node.name)
        merged = editor.node(
            "Transpose", [first.inputs[0]], {"perm": perm}, name=name, keep_name=True
        )
        editor.replace(node, [merged])
        editor.remove([first])


def _perm(node: ir.Node) -> list[int] | None:
    found, count = node.attributes.get_ints("perm"), rank(node.inputs[0])
    if found is not None:
        return list(found)
    return None if count is None else list(reversed(range(count)))


def _merged(first: ir.Node, second: ir.Node) -> list[int]:
    inner, outer = _perm(first), _perm(second)
    assert inner is not None and outer is not None
    return [inner[axis] for axis in outer]


def _is_identity(perm: list[int]) -> bool:
    return perm == list(range(len(perm)))


MATRIX = 2


class TransposedToGemm(NodePass):
    """Replaces MatMul(x, Transpose(W)), with a shared W, by a Gemm with transB.

    So a table of embeddings that is also the last layer's weight is stored once; folding the
    Transpose would store it twice. Gemm takes matrices, so an x of a higher rank is reshaped:

        Reshape(x, (-1, K)) -> Gemm(W, transB=1) -> Reshape(…, (…, M))
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"MatMul"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the MatMul stays; None where it becomes a Gemm."""
        weight = _transposed(node)
        if weight is None:
            return "it does not multiply with the transpose of a constant matrix"
        if not shares(weight):
            return "no other node reads the matrix, whose transpose is stored instead"
        size = rank(node.inputs[0])
        if size is None or size < MATRIX:
            return "the rank of its input is not known, or below 2"
        return None

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """(Reshape ->) Gemm (-> Reshape); the Gemm keeps the MatMul's name."""
        data, weight, name = node.inputs[0], _transposed(node), str(node.name)
        assert data is not None and weight is not None and data.shape is not None
        matrix, before, after = data, [], []
        if len(data.shape) > MATRIX:
            rows = editor.initializer(f"{name}_rows", np.array([-1, _columns(weight)]))
            flat = editor.node("Reshape", [data, rows], name=f"{name}_flat")
            before, matrix = [flat], flat.outputs[0]
            matrix.type, matrix.shape = data.type, ir.Shape([None, _columns(weight)])
        gemm = editor.node("Gemm", [matrix, weight], {"transB": 1}, name=name, keep_name=True)
        if len(data.shape) > MATRIX:
            gemm.outputs[0].type = data.type
            gemm.outputs[0].shape = ir.Shape([None, static_dim(weight, 0)])
            after = _reshaped(editor, gemm.outputs[0], data, weight, name)
        editor.replace(node, [*before, gemm, *after])


def _transposed(node: ir.Node) -> ir.Value | None:
    """The constant matrix whose transpose is the MatMul's second operand."""
    value = input_at(node, 1)
    writer = producer(value)
    if writer is None or not is_op(writer, "Transpose"):
        return None
    matrix = writer.inputs[0]
    if not is_constant(matrix) or rank(matrix) != MATRIX:
        return None
    return matrix if writer.attributes.get_ints("perm") in (None, (1, 0)) else None


def _columns(weight: ir.Value) -> int:
    size = static_dim(weight, 1)
    assert size is not None
    return size


def _reshaped(
    editor: Editor, product: ir.Value, data: ir.Value, weight: ir.Value, name: str
) -> list[ir.Node]:
    """The product's rows reshaped to the leading dimensions of `data`."""
    assert data.shape is not None
    leading = [static_dim(data, axis) for axis in range(len(data.shape) - 1)]
    width = static_dim(weight, 0)
    assert width is not None
    if leading.count(None) <= 1:
        sizes = [-1 if size is None else size for size in leading]
        shape = editor.initializer(f"{name}_shape", np.array([*sizes, width]))
        return [editor.node("Reshape", [product, shape], name=f"{name}_shaped")]
    whole = editor.node("Shape", [data], name=f"{name}_sizes")
    ends = [
        editor.initializer(f"{name}_{k}", np.array([i])) for k, i in (("first", 0), ("end", -1))
    ]
    part = editor.node("Slice", [whole.outputs[0], *ends], name=f"{name}_leading")
    last = editor.initializer(f"{name}_width", np.array([width]))
    joined = editor.node("Concat", [part.outputs[0], last], {"axis": 0}, name=f"{name}_shape")
    final = editor.node("Reshape", [product, joined.outputs[0]], name=f"{name}_shaped")
    return [whole, part, joined, final]
