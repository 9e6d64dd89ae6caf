"""What is written takes and gives what the original does."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_graphs import Feeds, build, quantize, run

from onnxq.export.compact import export
from onnxq.load.interface import interface_of
from onnxq.load.model import load_model
from onnxq.normalise.pipeline import normalise

WEIGHTS = {"w": (6, 3, 3, 3), "v": (5, 96), "to": np.array([2, 96])}
BODY = "c = Conv (x, w) a = Relu (c) f = Reshape (a, to) y = Gemm <transB = 1> (f, v)"


def _written(tmp_path, signature: str, **weights: np.ndarray) -> tuple[ir.Model, ir.Model]:
    """The loaded original and what is written of it."""
    path = tmp_path / "model.onnx"
    ir.save(build(f"net ({signature}) {{ {BODY} }}", {**WEIGHTS, **weights}), path)
    original = load_model(path)
    images = np.random.default_rng(0).normal(0, 1, (16, 3, 6, 6)).astype(np.float32)
    made = quantize(normalise(original).model, Feeds([{"x": images}]))
    return original, export(made.student, made.qparams, interface_of(original))


def _shapes(model: ir.Model) -> list[str]:
    return [f"{value.name} {value.shape}" for value in [*model.graph.inputs, *model.graph.outputs]]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fixed_batch_is_fixed_again(tmp_path, batch):
    signature = f"float[{batch}, 3, 6, 6] x) => (float[{batch}, 5] y"
    original, written = _written(tmp_path, signature, to=np.array([batch, 96]))
    assert _shapes(written) == _shapes(original)
    (reshape,) = [node for node in written.graph if node.op_type == "Reshape"]
    assert reshape.inputs[1].const_value.numpy().tolist() == [batch, 96]
    onnx.checker.check_model(ir.to_proto(written), full_check=True)
    x = np.random.default_rng(1).normal(0, 1, (batch, 3, 6, 6)).astype(np.float32)
    expected, found = run(original, {"x": x})["y"], run(written, {"x": x})["y"]
    assert np.abs(expected - found).max() < 0.1 * np.abs(expected).max()


def test_names_of_dimensions_stay(tmp_path):
    signature = "float[images, 3, 6, 6] x) => (float[images, 5] y"
    original, written = _written(tmp_path, signature, to=np.array([0, -1]))
    assert _shapes(written) == _shapes(original)
    assert _shapes(written)[0] == "x [images,3,6,6]"


def test_a_fixed_batch_makes_no_file_larger(tmp_path):
    made = [
        _written(tmp_path, f"float[{n}, 3, 6, 6] x) => (float[{n}, 5] y", to=np.array([first, -1]))
        for n, first in (("N", 0), (1, 1))
    ]
    free, fixed = (ir.to_proto(written).ByteSize() for _, written in made)
    assert fixed <= free
