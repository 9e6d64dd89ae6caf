"""Gemm without alpha, beta and transA, and a 1×1 convolution on one position as a Gemm."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.graph.editor import Editor
from onnxq.graph.facts import (
    axes_of,
    constant,
    input_at,
    is_op,
    only_reader,
    rank,
    static_dim,
)
from onnxq.graph.scaled_weight import shares, weight_array
from onnxq.normalise.affine import times_factor
from onnxq.normalise.passes import NodePass
from onnxq.normalise.spatial import is_pointwise


class GemmToPlain(NodePass):
    """Rewrites `alpha·xᵀ·W + beta·b` as `x·W + b`.

    Alpha goes into the weights (or, where other layers read them too, into the data), beta into the
    bias, and transA becomes a Transpose. A bias that is computed, or is not one number per column,
    becomes an Add behind the product.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Gemm"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the Gemm stays; None where it is rewritten."""
        weight = input_at(node, 1)
        array = weight_array(weight)
        if weight is None or array is None:
            return "its weights are not constant"
        if not np.issubdtype(array.dtype, np.floating):
            return f"its weights are {array.dtype.name}"
        alpha = node.attributes.get_float("alpha", 1.0)
        beta = node.attributes.get_float("beta", 1.0)
        if alpha != 1 or beta != 1 or node.attributes.get_int("transA"):
            return None
        bias = input_at(node, 2)
        if bias is not None and not _is_per_column(weight_array(bias), _columns(node, array)):
            return None
        return "it is plain"

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """Transpose → Gemm → Add, as far as they are needed; the Gemm keeps its name."""
        weight = weight_array(node.inputs[1])
        assert weight is not None
        bias, data, added = input_at(node, 2), node.inputs[0], None
        before: list[ir.Node] = []
        after: list[ir.Node] = []
        if node.attributes.get_int("transA"):
            name = f"{node.name}_transpose"
            before = [editor.node("Transpose", [data], {"perm": [1, 0]}, name=name)]
            data = before[0].outputs[0]
        if bias is not None:
            before_bias, bias = bias_as_added(node, bias, editor)
            before += before_bias
            if bias is not None and not _is_per_column(weight_array(bias), _columns(node, weight)):
                bias, added = None, bias
        inputs = [data, _times_alpha(node, editor), *([] if bias is None else [bias])]
        attributes = {"transB": node.attributes.get_int("transB", 0)}
        gemm = editor.node("Gemm", inputs, attributes, name=str(node.name), keep_name=True)
        if added is not None:
            after = [editor.node("Add", [gemm.outputs[0], added], name=f"{node.name}_add")]
        editor.replace(node, [*before, gemm, *after])


def bias_as_added(
    node: ir.Node, bias: ir.Value, editor: Editor
) -> tuple[list[ir.Node], ir.Value | None]:
    """The bias as it is added, and the node that computes it; no bias where beta is 0."""
    beta, array = node.attributes.get_float("beta", 1.0), weight_array(bias)
    if beta == 1:
        return [], bias
    if beta == 0:
        return [], None
    if array is not None:
        scaled = (array.astype(np.float64) * beta).astype(array.dtype)
        return [], editor.initializer(f"{node.name}_bias", scaled)
    weights = [found for each in node.inputs[:2] if (found := weight_array(each)) is not None]
    factor = editor.initializer(f"{node.name}_beta", np.array(beta, weights[0].dtype))
    product = editor.node("Mul", [bias, factor], name=f"{node.name}_times_beta")
    return [product], product.outputs[0]


def _columns(node: ir.Node, weight: np.ndarray) -> int:
    return int(weight.shape[0 if node.attributes.get_int("transB", 0) else 1])


def _is_per_column(bias: np.ndarray | None, columns: int) -> bool:
    """Whether the bias is (columns,), (1, columns), or one number that broadcasts over them."""
    return bias is not None and bias.size in (1, columns) and bias.shape[-1:] in ((), (bias.size,))


def _times_alpha(node: ir.Node, editor: Editor) -> ir.Value | None:
    alpha, weight = node.attributes.get_float("alpha", 1.0), weight_array(node.inputs[1])
    assert weight is not None
    if alpha == 1:
        return node.inputs[1]
    return times_factor(editor, node, np.full(_columns(node, weight), alpha))


class ConvToGemm(NodePass):
    """Replaces Conv 1×1 on `(N, C, 1, 1)` at the head of a classifier by Flatten → Gemm.

    It applies where the result is flattened to `(N, K)`, and where the graph returns it, in which
    case Unsqueeze puts the two dimensions back. Gemm's integer kernel returns floats, so logits
    stay float.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Conv"})

    def refusal(self, node: ir.Node) -> str | None:
        """Why the convolution stays; None where it becomes a Gemm."""
        if not is_pointwise(node) or node.attributes.get_int("group", 1) != 1:
            return "it is not a plain 1×1 convolution"
        source, target = node.inputs[0], node.outputs[0]
        if node.inputs[1] is not None and shares(node.inputs[1]):
            return "its weight is shared, and a matrix would be a copy of it"
        if rank(source) != 4 or static_dim(source, 2) != 1 or static_dim(source, 3) != 1:
            return "its input is not known to be 1×1"
        if target.is_graph_output():
            return "its output is read inside the graph too" if target.uses() else None
        reader = only_reader(target)
        if reader is None or not _flattens(reader, target):
            return "its output is not flattened"
        return None

    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """Flatten → Gemm (→ Unsqueeze); the Gemm keeps the convolution's name."""
        flatten = editor.node("Flatten", [node.inputs[0]], {"axis": 1}, name=f"{node.name}_flatten")
        gemm = editor.node(
            "Gemm",
            [flatten.outputs[0], _matrix(editor, node), *node.inputs[2:]],
            {"transB": 1},
            name=str(node.name),
            keep_name=True,
        )
        _set_shapes(node, flatten, gemm)
        if node.outputs[0].is_graph_output():
            axes = editor.initializer(f"{node.name}_axes", np.array([2, 3]))
            last = editor.node("Unsqueeze", [gemm.outputs[0], axes], name=f"{node.name}_unsqueeze")
            editor.replace(node, [flatten, gemm, last])
            return
        reader = only_reader(node.outputs[0])
        assert reader is not None
        editor.replace(reader, [flatten, gemm])
        editor.remove([node])


def _matrix(editor: Editor, node: ir.Node) -> ir.Value:
    weight = weight_array(node.inputs[1])
    assert weight is not None
    return editor.initializer(f"{node.name}_weight", weight.reshape(weight.shape[:2]))


def _set_shapes(node: ir.Node, flatten: ir.Node, gemm: ir.Node) -> None:
    source, weight = node.inputs[0], weight_array(node.inputs[1])
    assert source is not None and source.shape is not None and weight is not None
    batch = source.shape[0]
    for made, size in ((flatten, weight.shape[1]), (gemm, weight.shape[0])):
        made.outputs[0].type = source.type
        made.outputs[0].shape = ir.Shape([batch, int(size)])


def _flattens(reader: ir.Node, value: ir.Value) -> bool:
    """Whether the reader turns `(N, K, 1, 1)` into `(N, K)`."""
    if is_op(reader, "Flatten"):
        return reader.attributes.get_int("axis", 1) == 1
    if is_op(reader, "Squeeze"):
        return axes_of(reader, 4) == (2, 3)
    if not is_op(reader, "Reshape") or reader.inputs[0] is not value:
        return False
    shape = constant(input_at(reader, 1))
    channels = static_dim(value, 1)
    if shape is None or shape.size != 2 or channels is None:
        return False
    first, second = (int(size) for size in shape)
    if first == 0 and reader.attributes.get_int("allowzero"):
        return False
    return (second == channels) or (second == -1 and first in (0, static_dim(value, 0)))
