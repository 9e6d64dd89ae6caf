"""Files made of models in other float types than float32."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq import Recipe, compress
from onnxq.load.model import load_model
from onnxq.load.read import run_model
from onnxq.report.inspection import inspect
from onnxq.verify.benchmark import benchmark
from onnxq.verify.compare import compare
from onnxq.verify.evaluate import evaluate
from tests.float_models import OTHER_TYPES, in_type, mlp, parse

QUICK = Recipe(learn=("none",), max_minutes=0.1, equalize=False)


@pytest.fixture(scope="module")
def samples():
    return np.random.default_rng(1).normal(size=(80, 64)).astype(np.float32)


def compressed(folder, model, arrays):
    path, data = folder / "model.onnx", folder / "data.npz"
    onnx.save(model, path)
    np.savez(data, **arrays)
    return path, data, compress(path, data, QUICK, out=folder / "q.onnx")


@pytest.fixture(scope="module", params=OTHER_TYPES)
def made(request, tmp_path_factory, samples):
    """A model in one of the types, its data, what was made of it, and the type."""
    folder = tmp_path_factory.mktemp("made")
    return *compressed(folder, in_type(mlp(), request.param), {"x": samples}), request.param


def test_the_file_takes_and_gives_the_type_of_the_original(made, samples):
    path, _, result, kind = made
    written = onnx.load(result.path)
    onnx.checker.check_model(written, full_check=True)
    for value in (written.graph.input[0], written.graph.output[0]):
        assert value.type.tensor_type.elem_type == kind
    # Small: beside a kilobyte of metadata.
    assert result.metrics.size_after < result.metrics.size_before
    assert result.metrics.size_before == path.stat().st_size
    assert any("is computed in float32" in note for note in result.notes)
    if kind == TensorProto.BFLOAT16:
        return  # ONNX Runtime takes none from numpy.
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    x = np.random.default_rng(2).normal(size=(20, 64)).astype(dtype)
    (y,) = ort.InferenceSession(result.path).run(None, {"x": x})
    assert y.dtype == dtype
    (expected,) = run_model(load_model(path), [{"x": x}], optimise=True)[0]
    noise = np.square(expected - y.astype(np.float32)).sum()
    assert 10 * np.log10(np.square(expected).sum() / noise) > 25


def test_every_command_takes_original_and_file(made):
    path, data, result, kind = made
    assert evaluate(result.path, data, path).sqnr_db["y"] > 25
    assert compare(path, result.path, data).outputs["y"] > 25
    assert len(benchmark([path, result.path], rounds=2)) == 2
    assert [each.num_bits for each in inspect(result.path).layers] == [8, 8]
    seen = inspect(path)
    assert seen.inputs["x"] == f"{helper.tensor_dtype_to_np_dtype(kind).name} (N, 64)"
    assert seen.layers[0].bytes_before == 64 * 64 * ir.DataType(kind).itemsize
    assert inspect(result.path).layers[0].bytes_before == seen.layers[0].bytes_before


def test_a_float32_reference_does(made, tmp_path):
    _, data, result, _ = made
    onnx.save(mlp(), tmp_path / "reference.onnx")
    assert evaluate(result.path, data, tmp_path / "reference.onnx").sqnr_db["y"] > 25


def test_what_stays_float_stays_in_16_bits(tmp_path, samples):
    table = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float16)
    body = """g (float[N, 64] x) => (float[N, 8] y, float[N, 64] z) {
        h = Gemm <transB = 1> (x, w, b) r = Relu (h) y = Gemm <transB = 1> (r, v, c)
        p = Max (x, halves) z = Mul (x, singles)
    }"""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in mlp().graph.initializer}
    model = parse(body, **weights, halves=table[0].astype(np.float32))
    model = in_type(model, TensorProto.FLOAT16)
    model.graph.initializer.append(
        numpy_helper.from_array(np.linspace(1, 2, 64, dtype=np.float32), "singles")
    )
    model.graph.node[-2].output[0] = "z16"
    model.graph.node[-1].CopyFrom(helper.make_node("Cast", ["z16"], ["z32"], to=TensorProto.FLOAT))
    model.graph.node.append(helper.make_node("Mul", ["z32", "singles"], ["z"]))
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.FLOAT
    _, _, result = compressed(tmp_path, model, {"x": samples})
    written = {t.name: t.data_type for t in onnx.load(result.path).graph.initializer}
    assert written["halves"] == TensorProto.FLOAT16
    assert written["singles"] == TensorProto.FLOAT
    outputs = ort.InferenceSession(result.path).run(None, {"x": samples[:2].astype(np.float16)})
    assert [array.dtype for array in outputs] == [np.float16, np.float32]


def test_a_float32_file_has_no_16_bits(tmp_path, samples):
    model = mlp()
    model.graph.initializer.append(numpy_helper.from_array(np.ones(64, np.float32), "ones"))
    model.graph.node[0].input[0] = "scaled"
    model.graph.node.insert(0, helper.make_node("Mul", ["x", "ones"], ["scaled"]))
    _, _, result = compressed(tmp_path, model, {"x": samples})
    kinds = {tensor.data_type for tensor in onnx.load(result.path).graph.initializer}
    assert TensorProto.FLOAT16 not in kinds
    assert not any("computed in float32" in note for note in result.notes)
