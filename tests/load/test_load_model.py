from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxq.errors import ModelError
from onnxq.load.interface import input_specs
from onnxq.load.model import load_model, runnable
from onnxq.load.version import convert_version
from onnxq.runtime.session import (
    SURE_IR_VERSION,
    SURE_OPSET,
    newest_ir_version,
    newest_opset,
    open_session,
)


def _proto(body: str, signature: str = "(float[2,4] x) => (float[2,4] y)", opset: int = 13):
    domains = f'"" : {opset}, "custom" : 1, "com.microsoft" : 1'
    return onnx.parser.parse_model(
        f"<ir_version: 8, opset_import: [{domains}]> g {signature} {{ {body} }}"
    )


def _save(tmp_path: Path, proto: onnx.ModelProto) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def _message(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_inputs_of_a_model(tmp_path):
    proto = _proto("y = Add(x, w)", "(float[N,4] x, float[4] w) => (float[N,4] y)")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "w"))
    (spec,) = input_specs(load_model(_save(tmp_path, proto)))
    assert (spec.name, spec.dtype, spec.shape) == ("x", np.dtype(np.float32), (None, 4))


def test_not_a_file(tmp_path):
    assert "can't be read" in _message(tmp_path / "missing.onnx")
    assert "can't be read" in _message(tmp_path)


@pytest.mark.parametrize("data", [b"", b"hello, world\n" * 9, b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_not_onnx(tmp_path, data):
    path = tmp_path / "file.onnx"
    path.write_bytes(data)
    assert 'The file "file.onnx" is not an ONNX model' in _message(path)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_truncated(tmp_path, share):
    proto = _proto("y = Add(x, w)", "(float[2,4] x) => (float[2,4] y)")
    weight = onnx.numpy_helper.from_array(np.ones((2, 4), np.float32), "w")
    proto.graph.initializer.append(weight)
    data = proto.SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(data[: int(len(data) * share)])
    assert "truncated" in _message(path)


def test_truncated_before_the_opset(tmp_path):
    proto = _proto("y = Relu(x)")
    del proto.opset_import[:]
    assert "does not say which opset" in _message(_save(tmp_path, proto))


@pytest.mark.parametrize(
    ("body", "op"),
    [
        ("y = DequantizeLinear(q, s) q = QuantizeLinear(x, s)", "DequantizeLinear"),
        ("y = com.microsoft.QLinearAdd(x, x)", "QLinearAdd"),
        ("y = com.microsoft.MatMulNBits(x, x)", "MatMulNBits"),
        ("y = MatMulInteger(x, x)", "MatMulInteger"),
    ],
)
def test_already_quantized(tmp_path, body, op):
    message = _message(_save(tmp_path, _proto(body)))
    assert "already quantized" in message and f'"{op}"' in message


def test_custom_operators(tmp_path):
    message = _message(_save(tmp_path, _proto("y = custom.Magic(x)")))
    assert 'The node "y"' in message and '"custom::Magic"' in message


def test_custom_operators_in_a_sub_graph(tmp_path):
    body = (
        "y = If(c) <then_branch = t () => (float[2,4] p) { p = custom.Magic(x) },"
        " else_branch = e () => (float[2,4] p) { p = Relu(x) }>"
    )
    proto = _proto(body, "(float[2,4] x, bool c) => (float[2,4] y)")
    assert '"custom::Magic"' in _message(_save(tmp_path, proto))


def test_an_operator_that_onnx_never_had(tmp_path):
    message = _message(_save(tmp_path, _proto("y = SimplifiedLayerNormalization(x, x)", opset=17)))
    assert 'The node "y"' in message and "which ONNX does not have (up to opset" in message


@pytest.mark.parametrize("opset", [9, 12, 14, 16])
def test_an_operator_before_its_time_brings_the_opset_up(tmp_path, opset):
    """ONNX Runtime runs LayerNormalization at any opset, and its optimizer writes such models."""
    body = "r = Relu(x) y = LayerNormalization<axis=-1, epsilon=0.1>(r, s, b)"
    inputs = "(float[2,4] x, float[4] s, float[4] b) => (float[2,4] y)"
    path = _save(tmp_path, _proto(body, inputs, opset))
    model = load_model(path)
    assert model.opset_imports[""] == 17
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    rng = np.random.default_rng(0)
    feeds = {name: rng.normal(size=4).astype(np.float32) for name in "sb"}
    feeds["x"] = rng.normal(size=(2, 4)).astype(np.float32)
    expected = open_session(path, optimise=False).run(None, feeds)[0]
    np.testing.assert_allclose(open_session(model, optimise=False).run(None, feeds)[0], expected)


def test_external_data(tmp_path):
    proto = _proto("y = Add(x, w)")
    weight = onnx.numpy_helper.from_array(np.ones((2, 4), np.float32), "w")
    proto.graph.initializer.append(weight)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="w.data", size_threshold=0)
    x = np.zeros((2, 4), dtype=np.float32)
    assert open_session(load_model(path)).run(None, {"x": x})[0].sum() == 8
    (tmp_path / "w.data").write_bytes(b"short")
    assert "external data" in _message(path)
    (tmp_path / "w.data").unlink()
    assert "external data" in _message(path)


def test_refused_by_onnx_runtime(tmp_path):
    message = _message(_save(tmp_path, _proto("y = MatMul(x, x)")))
    assert "ONNX Runtime can't open" in message


def test_an_opset_too_old(tmp_path):
    message = _message(_save(tmp_path, _proto("y = Relu(x)", opset=6)))
    assert "uses opset 6, where 7 or newer" in message


def test_an_opset_that_is_not_known(tmp_path):
    message = _message(_save(tmp_path, _proto("y = Relu(x)", opset=99)))
    assert "uses opset 99, which is newer than any that is known here" in message


def test_a_file_of_onnxq_is_not_compressed_again(tmp_path):
    proto = _proto("y = Relu(x)")
    proto.metadata_props.add(key="onnxq.version", value="0.1.0")
    assert "already quantized (by onnxq" in _message(_save(tmp_path, proto))


@pytest.fixture
def oldest_runtime(monkeypatch):
    """An ONNX Runtime that reads no more than the oldest one does."""
    for module in ("model", "version"):
        monkeypatch.setattr(f"onnxq.load.{module}.newest_opset", lambda **_: SURE_OPSET)
        monkeypatch.setattr(f"onnxq.load.{module}.newest_ir_version", lambda: SURE_IR_VERSION)


@pytest.mark.parametrize(("opset", "ir_version"), [(13, 12), (23, 10)])
def test_what_is_newer_than_onnx_runtime_is_run_converted(
    tmp_path, oldest_runtime, opset, ir_version
):
    proto = _proto("y = Relu(x)", opset=opset)
    proto.ir_version = ir_version
    path = _save(tmp_path, proto)
    found = runnable(path, ir.load(path))
    assert isinstance(found, ir.Model)
    open_session(found)
    older = _save(tmp_path, _proto("y = Relu(x)"))
    assert runnable(older, ir.load(older)) == older


@pytest.mark.parametrize("opset", [22, 23, 24, 25])
def test_new_opsets_come_down_where_they_are_not_read(tmp_path, oldest_runtime, opset):
    model = load_model(_save(tmp_path, _proto("z = Identity(x) y = Relu(z)", opset=opset)))
    assert model.opset_imports[""] == 21 and model.ir_version <= 10


@pytest.mark.parametrize("opset", [13, 21, 22, 25, newest_opset()])
def test_the_opset_stays_where_it_is_read(tmp_path, opset):
    proto = _proto("z = Identity(x) y = Relu(z)", opset=opset)
    proto.ir_version = 13 if opset > SURE_OPSET else 8
    path = _save(tmp_path, proto)
    model = load_model(path)
    assert model.opset_imports[""] == min(opset, newest_opset(quantized=True))
    assert model.ir_version == min(proto.ir_version, newest_ir_version())
    open_session(model)
    if proto.ir_version <= newest_ir_version():
        assert runnable(path, ir.load(path)) == path


def test_the_newest_versions_are_those_that_onnx_runtime_reads():
    def reads(opset, ir_version):
        proto = _proto("y = Relu(x)", opset=21)
        proto.ir_version, proto.opset_import[0].version = ir_version, opset
        try:
            open_session(proto.SerializeToString())
        except Exception:
            # ONNX Runtime's exceptions share no base class but Exception.
            return False
        return True

    assert [reads(newest_opset() + more, 10) for more in (0, 1)] == [True, False]
    assert [reads(21, newest_ir_version() + more) for more in (0, 1)] == [True, False]


@pytest.mark.parametrize(
    ("opset", "body"),
    [
        (7, "y = Clip<min=0.0, max=0.5>(x)"),
        (7, "y = Dropout(x)"),
        (7, "y = Pad<pads=[0,0,1,1,0,0,1,1]>(x)"),
        (7, "y = Slice<axes=[2], starts=[1], ends=[3]>(x)"),
        (7, "y = ReduceSum<axes=[1], keepdims=0>(x)"),
        (7, 'y = Upsample<mode="nearest", scales=[1.0,1.0,2.0,2.0]>(x)'),
        (8, "y = Softmax<axis=1>(x)"),
        (9, 's = Constant<value=float[4]{1.0,1.0,2.0,2.0}>() y = Upsample<mode="linear">(x, s)'),
        (10, 's = Constant<value=float[4]{1.0,1.0,1.5,1.5}>() y = Resize<mode="linear">(x, s)'),
        (10, 's = Constant<value=float[4]{1.0,1.0,1.5,1.5}>() y = Resize<mode="nearest">(x, s)'),
        (12, "y = Unsqueeze<axes=[0]>(x)"),
    ],
)
def test_old_opsets_come_up_with_equal_outputs(tmp_path, opset, body):
    path = _save(tmp_path, _proto(body, "(float[1,2,4,4] x) => (float y)", opset))
    proto = onnx.load(path)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    path.write_bytes(proto.SerializeToString())
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype(np.float32)
    model = load_model(path)
    assert model.opset_imports[""] == 13
    expected = open_session(path, optimise=False).run(None, {"x": x})[0]
    found = open_session(model, optimise=False).run(None, {"x": x})[0]
    np.testing.assert_array_equal(found, expected)


def test_a_conversion_that_changes_the_outputs_is_an_error(tmp_path, monkeypatch):
    def wrong(proto, name, least):
        converted = convert_version(proto, name, least)
        converted.graph.node[0].op_type = "Neg"
        return converted

    monkeypatch.setattr("onnxq.load.model.convert_version", wrong)
    message = _message(_save(tmp_path, _proto("y = Relu(x)", opset=9)))
    assert "uses opset 9 and converting it changes what it computes" in message


def test_a_least_opset_is_reached_and_a_newer_one_kept(tmp_path):
    x = np.full((2, 4), 8, np.float32)
    for opset, expected in ((9, 21), (13, 21), (21, 21)):
        model = load_model(_save(tmp_path, _proto("y = Relu(x)", opset=opset)), 21)
        assert (model.opset_imports[""], model.ir_version) == (expected, 10)
        assert open_session(model).run(None, {"x": x})[0].max() == 8
    assert load_model(_save(tmp_path, _proto("y = Relu(x)", opset=13))).opset_imports[""] == 13


def test_an_input_without_a_shape(tmp_path):
    proto = _proto("y = Relu(x)")
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match=r'The input "x".*a tensor of known rank is expected'):
        input_specs(load_model(_save(tmp_path, proto)))
