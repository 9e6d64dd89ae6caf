"""Operators that only ONNX Runtime has: outputs get types, and layers behind them are learned."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_graphs import compress

from onnxq.normalise.infer_shapes import AskRuntime, InferShapes
from onnxq.options.recipe import Recipe
from onnxq.pipeline import plan_model

TEXT = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
  f = com.microsoft.FusedConv<activation="Relu", pads=[1,1,1,1]>(x, w, b)
  t = Tanh(f)
  y = Conv(t, v)
}"""
SHAPES = {"w": (8, 3, 3, 3), "b": (8,), "v": (4, 8, 1, 1)}


@pytest.fixture
def fused() -> ir.Model:
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=size).astype(np.float32) for name, size in SHAPES.items()}
    tensors = [ir.tensor(array, name=name) for name, array in arrays.items()]
    return ir.from_onnx_text(TEXT, initializers=tensors)


def test_what_onnx_runtime_infers_is_written_down_and_reaches_further(fused):
    values = {value.name: value for node in fused.graph for value in node.outputs}
    InferShapes()(fused)
    assert values["f"].type is None
    result = AskRuntime()(fused)
    assert not result.modified and result.model is fused
    assert [value.name for value in fused.graph.outputs] == ["y"]
    assert values["f"].dtype == ir.DataType.FLOAT
    assert list(values["f"].shape)[1:] == [8, 8, 8]
    InferShapes()(fused)
    assert values["t"].dtype == ir.DataType.FLOAT
    described = values["f"].shape
    AskRuntime()(fused)
    assert values["f"].shape is described


def test_a_layer_behind_a_fused_one_is_learned(fused, tmp_path):
    ir.save(fused, tmp_path / "m.onnx")
    x = np.random.default_rng(1).normal(size=(32, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    recipe = Recipe(epochs=1, learn=("weights",), activation_bits=4)
    result = compress(tmp_path / "m.onnx", tmp_path / "x.npz", recipe, out=tmp_path / "o.onnx")
    assert len(result.metrics.learning["scores"]) == 1
    onnx.checker.check_model(onnx.load(tmp_path / "o.onnx"))


def test_a_fused_layer_is_left_alone_with_the_reason(fused, tmp_path):
    ir.save(fused, tmp_path / "m.onnx")
    left_alone = plan_model(tmp_path / "m.onnx").plan.left_alone
    assert [reason for reason in left_alone.values() if "ONNX Runtime's optimizer" in reason]
