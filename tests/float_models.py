"""Copies of small float32 models in other float types, as exporters write them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OTHER_TYPES = [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE]


def parse(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    """A float32 model of opset 17: a graph as ONNX text, and its initializers."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def in_type(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """A copy whose float32 tensors, values and element types are of another type."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _convert_graph(copy.graph, kind)
    return copy


def _convert_graph(graph: onnx.GraphProto, kind: int) -> None:
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = kind
    for tensor in graph.initializer:
        _convert_tensor(tensor, kind)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _convert_tensor(attribute.t, kind)
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
            _convert_graph(attribute.g, kind)


def _convert_tensor(tensor: onnx.TensorProto, kind: int) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def mlp(width: int = 64) -> onnx.ModelProto:
    """Two Gemm with a Relu between them, on a fixed seed."""
    generator = np.random.default_rng(0)
    draw = {"w": (width, width), "b": (width,), "v": (8, width), "c": (8,)}
    weights = {k: generator.normal(0, 0.1, s).astype(np.float32) for k, s in draw.items()}
    return parse(
        f"""g (float[N, {width}] x) => (float[N, 8] y) {{
            h = Gemm <transB = 1> (x, w, b) r = Relu (h) y = Gemm <transB = 1> (r, v, c)
        }}""",
        **weights,
    )
