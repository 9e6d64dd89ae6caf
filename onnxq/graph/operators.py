"""Operators and their integer kernels in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph.facts import constant, scalar

WEIGHT_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose constant weights are quantized."""

TABLE = "Gather"
"""The operator that looks rows up in a table, whose rows are quantized as channels are."""

RECURRENT_OPERATORS = ("LSTM", "GRU", "RNN")

FUSED_OPERATORS = ("FusedConv", "FusedGemm", "FusedMatMul", "NhwcFusedConv")
"""What ONNX Runtime's optimizer makes of weight operators, in its own domain."""

FLOAT_RESULT_OPERATORS = ("Gemm", "MatMul")
"""Weight operators whose integer kernel can give a float result."""

DATA_MOVEMENT = frozenset(
    (
        "MaxPool",
        "Reshape",
        "Flatten",
        "Transpose",
        "Slice",
        "Pad",
        "Squeeze",
        "Unsqueeze",
        "Gather",
        "Split",
        "Expand",
        "Tile",
        "Resize",
    )
)
"""Data-movement operators: their integer form keeps the scale of their input."""

COMPUTES = frozenset(
    (
        "Add",
        "Mul",
        "Concat",
        "AveragePool",
        "GlobalAveragePool",
        "LeakyRelu",
        "Sigmoid",
    )
)
"""Operators without weights that have an integer kernel with a scale of its own."""

NON_NEGATIVE = frozenset(
    (
        "Relu",
        "Sigmoid",
        "Softmax",
        "HardSigmoid",
        "Abs",
        "Exp",
        "Sqrt",
        "Softplus",
    )
)
"""Operators that give no negative value."""

KEEPS_SIGN = frozenset(
    (
        "AveragePool",
        "GlobalAveragePool",
        "Concat",
        "Add",
        "Mul",
        "ReduceMean",
        "ReduceSum",
        "ReduceMax",
        "Dropout",
        "Identity",
    )
)
"""Operators that give no negative value where they read none."""


def weight_index(op_type: str) -> int:
    """The index of a layer's weight among its inputs: 0 for a Gather, else 1."""
    return 0 if op_type == TABLE else 1


def is_data_movement(node: ir.Node) -> bool:
    """Whether the node can move the integers of its first input without changing them."""
    if node.domain or node.op_type not in DATA_MOVEMENT:
        return False
    if node.op_type == "Pad":
        return _pads_with_zero(node)
    if node.op_type == "MaxPool":
        return len(node.outputs) == 1
    if node.op_type == "Resize":
        return _picks_elements(node)
    if node.op_type == "Gather":
        return constant(node.inputs[0]) is None
    return True


def _picks_elements(node: ir.Node) -> bool:
    """Whether a Resize takes nearest neighbours; interpolated integers would be truncated."""
    crops = node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    return node.attributes.get_string("mode", "nearest") == "nearest" and not crops


def _pads_with_zero(node: ir.Node) -> bool:
    if node.attributes.get_string("mode", "constant") != "constant":
        return True
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    value = constant(node.inputs[2])
    return value is not None and not np.any(value)


def activation_bounds(node: ir.Node) -> tuple[float, float] | None:
    """(0, upper) of a Relu or a Clip from 0, which a range can include; None for other nodes."""
    if node.domain:
        return None
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip" or len(node.inputs) < 2:
        return None
    lower = scalar(node.inputs[1])
    upper = scalar(node.inputs[2], np.inf) if len(node.inputs) > 2 else np.inf
    if lower != 0.0 or upper is None or upper <= 0.0:
        return None
    return 0.0, upper


def never_negative(value: ir.Value) -> bool:
    """Whether the graph shows that the value has no negative element."""
    node = value.producer()
    if node is None or node.domain:
        array = constant(value)
        return array is not None and bool(np.all(array >= 0))
    if node.op_type in NON_NEGATIVE or activation_bounds(node) is not None:
        return True
    if is_data_movement(node):
        return node.inputs[0] is not None and never_negative(node.inputs[0])
    if node.op_type in KEEPS_SIGN:
        return all(v is not None and never_negative(v) for v in node.inputs[: _data_inputs(node)])
    return False


def _data_inputs(node: ir.Node) -> int:
    return 1 if node.op_type.startswith("Reduce") else len(node.inputs)
