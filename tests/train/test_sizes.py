"""Sizes of samples in a graph that takes any."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.engine import ungradable_nodes
from onnxq.train.budget import fix_sizes


def pooled(height: str) -> ir.Model:
    return ir.from_onnx_text(
        f"""<ir_version: 8, opset_import: ["":13]>
g (float[N,1,{height},4] x, float w) => (float loss) {{
  a = Mul(x, w)
  p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(a)
  loss = ReduceSum<keepdims=0>(p)
}}"""
    )


def test_a_pool_of_any_size_gets_a_gradient():
    model = pooled("H")
    before = ir.to_proto(model).SerializeToString()
    feeds = {"x": np.zeros((2, 1, 6, 4), np.float32)}
    fixed = fix_sizes(model, feeds)
    assert ungradable_nodes(model, ["w"])
    assert not ungradable_nodes(fixed, ["w"])
    assert fixed.graph.inputs[0].shape == ir.Shape(["N", 1, 6, 4])
    assert fixed.graph.node(1).outputs[0].shape == ir.Shape(["N", 1, 3, 2])
    assert ir.to_proto(model).SerializeToString() == before


def test_a_model_of_known_size_is_left_alone():
    model = pooled("6")
    assert fix_sizes(model, {"x": np.zeros((2, 1, 6, 4), np.float32)}) is model
