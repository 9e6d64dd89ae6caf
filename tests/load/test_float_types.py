import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxq.errors import ModelError
from onnxq.load.float_types import STORED_KEY, float_types_notes, half_type, stored_type
from onnxq.load.interface import input_specs, interface_of
from onnxq.load.model import load_model
from onnxq.load.read import run_model
from tests.float_models import OTHER_TYPES, in_type, mlp, parse

OF_ALL_KINDS = """g (float[2, 4] x, bool b) => (float[2, 4] y, int64[2] s) {
    k = Constant <value = float[4] {1.0, 2.0, 3.0, 4.0}> ()
    shape = Constant <value = int64[2] {2, 4}> ()
    filled = ConstantOfShape <value = float[1] {0.5}> (shape)
    eye = EyeLike <dtype = 1> (x)
    noise = RandomNormalLike <dtype = 1, scale = 0.000001> (x)
    numbers = Cast <to = 1> (shape)
    total = ReduceSum <keepdims = 0> (numbers)
    chosen = If (b) <
        then_branch = t () => (float[2, 4] p) {
            two = Constant <value = float {2.0}> () p = Mul (x, two)
        },
        else_branch = e () => (float[2, 4] q) { q = Add (x, w) }
    >
    a = Add (chosen, k) c = Add (a, filled) d = Add (c, eye) f = Add (d, noise)
    y = Add (f, total)
    s = Shape (x)
}"""


def save(tmp_path, model):
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("kind", OTHER_TYPES)
@pytest.mark.parametrize("branch", [True, False])
def test_all_that_has_a_float_type_is_float32(tmp_path, kind, branch):
    w = np.arange(8, dtype=np.float32).reshape(2, 4)
    model = in_type(parse(OF_ALL_KINDS, w=w), kind)
    loaded = load_model(save(tmp_path, model))
    for graph in loaded.graphs():
        for value in [*graph.initializers.values(), *(v for node in graph for v in node.outputs)]:
            assert value.dtype in (None, ir.DataType.FLOAT, ir.DataType.INT64)
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    feeds = [{"x": x, "b": np.array(branch)}]
    ((y, _),) = run_model(loaded, feeds, optimise=True)
    expected = (2 * x if branch else x + w) + [1, 2, 3, 4] + 0.5 + np.eye(2, 4) + 6
    np.testing.assert_allclose(y, expected, atol=1e-4)
    types = [port.type.dtype for port in interface_of(loaded).inputs]
    assert types == [ir.DataType(kind), ir.DataType.BOOL]


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_what_the_file_held_is_known(tmp_path, kind):
    loaded = load_model(save(tmp_path, in_type(mlp(), kind)))
    assert stored_type(loaded) == ir.DataType(kind)
    assert half_type(loaded) == (None if kind == TensorProto.DOUBLE else ir.DataType(kind))
    (spec,) = input_specs(loaded)
    assert spec.dtype == np.float32
    assert str(spec) == f"{helper.tensor_dtype_to_np_dtype(kind).name} (N, 64)"
    assert str(helper.tensor_dtype_to_np_dtype(kind).name) in float_types_notes(loaded)[0]


def test_a_float32_model_stays_as_it_is(tmp_path):
    loaded = load_model(save(tmp_path, mlp()))
    assert STORED_KEY not in loaded.metadata_props
    assert float_types_notes(loaded) == []
    assert stored_type(loaded) == ir.DataType.FLOAT


def test_float64_that_counts_positions_stays(tmp_path):
    model = parse(
        """g (float[1, 4] x) => (float[1, 4] y) {
            s = Shape (x) d = Cast <to = 11> (s) quarter = Constant <value = double {0.25}> ()
            e = Mul (d, quarter) f = Ceil (e) i = Cast <to = 7> (f) y = Expand (x, i)
        }"""
    )
    loaded = load_model(save(tmp_path, model))
    assert (
        any(value.dtype == ir.DataType.DOUBLE for node in loaded.graph for value in node.outputs)
        or loaded.graph.node(1).attributes["to"].as_int() == TensorProto.DOUBLE
    )
    assert STORED_KEY not in loaded.metadata_props


def test_the_lowest_float64_stays_finite(tmp_path):
    model = parse("g (double[4] x) => (double[4] y) { y = Max (x, low) }")
    low = np.array([np.finfo(np.float64).min, -np.inf, 1.0, np.nan])
    model.graph.initializer.append(onnx.numpy_helper.from_array(low, "low"))
    loaded = load_model(save(tmp_path, model))
    found = loaded.graph.initializers["low"].const_value.numpy()
    np.testing.assert_array_equal(found, [np.finfo(np.float32).min, -np.inf, 1, np.nan])


def test_weights_in_float16_under_a_cast_lose_it(tmp_path):
    w = np.eye(4, dtype=np.float16)
    model = parse(
        "g (float[N, 4] x) => (float[N, 4] y) { v = Cast <to = 1> (w) y = MatMul (x, v) }"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    loaded = load_model(save(tmp_path, model))
    assert loaded.graph.initializers["w"].dtype == ir.DataType.FLOAT
    assert half_type(loaded) == ir.DataType.FLOAT16


def test_an_older_opset_is_converted_too(tmp_path):
    model = in_type(mlp(), TensorProto.FLOAT16)
    model.opset_import[0].version = 11
    x = np.ones((2, 64), np.float32)
    loaded = load_model(save(tmp_path, model))
    ((y,),) = run_model(loaded, [{"x": x}], optimise=True)
    ((expected,),) = run_model(load_model(save(tmp_path, mlp())), [{"x": x}], optimise=True)
    np.testing.assert_allclose(y, expected, atol=1e-2)


def test_metadata_of_another_hand_is_refused_in_a_sentence():
    model = ir.from_proto(mlp())
    model.metadata_props[STORED_KEY] = '{"bytes": 3}'
    with pytest.raises(ModelError, match=r"'onnxq\.stored' is not as onnxq writes it"):
        input_specs(model)
