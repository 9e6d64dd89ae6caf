"""Gemm without factors and without a transposed input, which integer kernels take."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import (
    constant,
    float_attribute,
    input_at,
    int_attribute,
)
from onnxq.normalise.linear import times_factor
from onnxq.normalise.passes import NodePass


class GemmToPlain(NodePass):
    """Brings `alpha·xᵀ·W + beta·b` into the form `x·W + b`.

    Alpha goes into the weights, or before them where other layers read them too, beta into the
    bias, and transA becomes a Transpose. A bias that is computed, or is no number per column,
    becomes an Add behind the product.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Gemm"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the Gemm stays; None where it has something to be rid of."""
        weight = input_at(node, 1)
        array = constant(weight)
        if weight is None or array is None:
            return "its weights are not constant"
        if not np.issubdtype(array.dtype, np.floating):
            return f"its weights are {array.dtype.name}"
        alpha = float_attribute(node, "alpha", 1.0)
        beta = float_attribute(node, "beta", 1.0)
        if alpha != 1 or beta != 1 or int_attribute(node, "transA", 0):
            return None
        bias = input_at(node, 2)
        if bias is not None and not _is_per_column(constant(bias), _columns(node, array)):
            return None
        return "it is plain"

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """Transpose → Gemm → Add, as far as they are needed; the Gemm keeps its name."""
        weight = constant(node.inputs[1])
        assert weight is not None
        bias, data, added = input_at(node, 2), node.inputs[0], None
        before: list[ir.Node] = []
        after: list[ir.Node] = []
        if int_attribute(node, "transA", 0):
            name = f"{node.name}_transpose"
            before = [editor.node("Transpose", [data], {"perm": [1, 0]}, name=name)]
            data = before[0].outputs[0]
        if bias is not None:
            before_bias, bias = bias_as_added(node, bias, editor)
            before += before_bias
            if bias is not None and not _is_per_column(constant(bias), _columns(node, weight)):
                bias, added = None, bias
        inputs = [data, _times_alpha(node, editor), *([] if bias is None else [bias])]
        attributes = {"transB": int_attribute(node, "transB", 0)}
        gemm = editor.node("Gemm", inputs, attributes, name=str(node.name), keep_name=True)
        if added is not None:
            after = [editor.node("Add", [gemm.outputs[0], added], name=f"{node.name}_add")]
        editor.replace(node, [*before, gemm, *after])


def bias_as_added(
    node: ir.Node, bias: ir.Value, editor: Editor
) -> tuple[list[ir.Node], ir.Value | None]:
    """The bias as it is added, and the node that computes it; no bias where beta is 0."""
    beta, array = float_attribute(node, "beta", 1.0), constant(bias)
    if beta == 1:
        return [], bias
    if beta == 0:
        return [], None
    if array is not None:
        scaled = (array.astype(np.float64) * beta).astype(array.dtype)
        return [], editor.initializer(f"{node.name}_bias", scaled)
    weights = [found for each in node.inputs[:2] if (found := constant(each)) is not None]
    factor = editor.initializer(f"{node.name}_beta", np.array(beta, weights[0].dtype))
    product = editor.node("Mul", [bias, factor], name=f"{node.name}_times_beta")
    return [product], product.outputs[0]


def _columns(node: ir.Node, weight: np.ndarray) -> int:
    return int(weight.shape[0 if int_attribute(node, "transB", 0) else 1])


def _is_per_column(bias: np.ndarray | None, columns: int) -> bool:
    """Whether it is (columns,), (1, columns), or one number that spreads over them."""
    return bias is not None and bias.size in (1, columns) and bias.shape[-1:] in ((), (bias.size,))


def _times_alpha(node: ir.Node, editor: Editor) -> ir.Value | None:
    alpha, weight = float_attribute(node, "alpha", 1.0), constant(node.inputs[1])
    assert weight is not None
    if alpha == 1:
        return node.inputs[1]
    return times_factor(editor, node, np.full(_columns(node, weight), alpha))
