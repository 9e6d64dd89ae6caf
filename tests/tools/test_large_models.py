"""The models of real size: counted at full size, run at a small one."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxq.plan.layers import find_layers
from onnxq.runtime.session import open_session
from tools.large_architectures import Scale
from tools.make_large_models import ARCHITECTURES, make, save

STATISTICS = (".mean", ".var")

SIZES = {"vgg16": (138_357_544, 16), "resnet50": (25_557_032, 54), "wide": (553_526_248, 10)}
"""Parameters, running statistics not counted, and weight layers."""
SMALL = Scale(width=1 / 32, image=32, classes=10)


def parameters(model: ir.Model) -> int:
    values = model.graph.initializers.items()
    return sum(v.const_value.size for name, v in values if not name.endswith(STATISTICS))


@pytest.mark.parametrize("name", SIZES)
def test_real_size(name):
    model = make(name, draw=False)
    layers, refused = find_layers(model.graph)
    assert (parameters(model), len(layers)) == SIZES[name]
    assert not refused


def test_the_wide_model_is_larger_than_a_protobuf_message():
    assert 4 * parameters(make("wide", draw=False)) > 2**31


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_small_one_runs_and_is_the_same_again(name, tmp_path):
    model = make(name, SMALL)
    save(model, tmp_path / "a.onnx")
    save(make(name, SMALL), tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    onnx.checker.check_model(str(tmp_path / "a.onnx"), full_check=True)
    session = open_session(tmp_path / "a.onnx")
    shape = session.get_inputs()[0].shape
    x = np.random.default_rng(0).standard_normal((2, *shape[1:])).astype(np.float32)
    logits = session.run(None, {"input": x})[0]
    assert logits.shape == (2, 10)
    assert np.isfinite(logits).all()
    assert logits.std() > 0.01


def test_large_weights_lie_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.make_large_models.EXTERNAL_FROM", 1000)
    save(make("wide", SMALL), tmp_path / "wide.onnx")
    assert (tmp_path / "wide.onnx.data").stat().st_size > 1000
    assert (tmp_path / "wide.onnx").stat().st_size < 10_000
