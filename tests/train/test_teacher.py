"""The original's outputs on disk: the same values with every batch size."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.data.samples import open_samples
from onnxq.errors import DataError
from onnxq.load.interface import input_specs
from onnxq.normalise.infer_shapes import InferShapes
from onnxq.runtime.session import open_session
from onnxq.train.objective import target_name
from onnxq.train.teacher import Teacher, keep_targets


@pytest.mark.parametrize("size", [1, 5, 16])
def test_a_tensor_with_several_rows_per_sample(tmp_path, size):
    """Detectors reshape (N, anchors, classes) to (N anchors, classes) before the softmax."""
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["":13]>
g (float[N,6] x) => (float[N,3,2] y) <int64[2] rows = {-1,2}, int64[3] whole = {-1,3,2}> {
  l = Reshape(x, rows)
  s = Softmax(l)
  y = Reshape(s, whole)
}"""
    )
    InferShapes()(model)
    x = np.random.default_rng(0).normal(size=(21, 6)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    samples = open_samples(tmp_path / "x.npz", input_specs(model), None)
    outputs, _ = keep_targets(Teacher(model, ["l"]), samples, tmp_path)
    assert len(outputs) == 21
    positions = np.array([0, 3, 4, 5, 9, 20])
    session = open_session(model)
    seen = []
    for feeds in outputs.batches(size, positions):
        target = feeds[target_name("l")]
        assert len(target) == 3 * len(feeds["x"])
        np.testing.assert_array_equal(target, feeds["x"].reshape(-1, 2))
        assert session.run(None, {"x": feeds["x"]})[0].shape[0] == len(feeds["x"])
        seen.append(feeds["x"])
    np.testing.assert_array_equal(np.concatenate(seen), x[positions])


def test_outputs_that_are_not_finite_are_named(tmp_path):
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["":13]>
g (float[N,2] x) => (float[N,2] y) { y = Log(x) }"""
    )
    InferShapes()(model)
    np.savez(tmp_path / "x.npz", x=np.array([[1, 2], [3, -1]], np.float32))
    samples = open_samples(tmp_path / "x.npz", input_specs(model), None)
    with pytest.raises(DataError, match="tensor 'y' is NaN or infinite on these samples"):
        keep_targets(Teacher(model, ["y"]), samples, tmp_path)
