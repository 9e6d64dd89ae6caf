"""How a layer of the graph reads its input."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.numerics.patches import Geometry
from onnxq.plan.spec import LayerSpec

LINEAR = ("Conv", "Gemm", "MatMul")
"""Operators whose outputs are sums over a row of inputs."""
MATRIX_RANK = 2


def layer_geometry(node: ir.Node, spec: LayerSpec, shape: tuple[int, ...]) -> Geometry:
    """The geometry of a Conv, Gemm or MatMul with a weight of this shape."""
    if spec.op_type != "Conv":
        return Geometry(spec.op_type, shape, spec.channel_axis)
    spatial = len(shape) - MATRIX_RANK
    group = node.attributes.get("group")
    return Geometry(
        spec.op_type,
        shape,
        spec.channel_axis,
        1 if group is None else group.as_int(),
        _ints(node, "strides", (1,) * spatial),
        _ints(node, "dilations", (1,) * spatial),
        _ints(node, "pads", (0,) * 2 * spatial),
    )


def _ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    found = node.attributes.get(name)
    return default if found is None else tuple(found.as_ints())
