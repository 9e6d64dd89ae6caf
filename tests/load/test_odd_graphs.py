from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxq.load.model import load_model
from onnxq.runtime.session import SURE_OPSET, newest_opset
from tests.load.saved import operators, parse, refusal, save

X = np.array([[-2, -1, 1, 2], [3, -4, 5, -6]], np.float32)
SIGNATURE = "g (float[2,4] x) => (float[2,4] y)"


def test_unsorted_nodes_are_sorted(tmp_path):
    proto = parse(f"{SIGNATURE} {{ y = Neg (b) b = Relu (a) a = Abs (x) }}")
    assert operators(tmp_path, proto, X) == ["Abs", "Relu", "Neg"]


def test_a_sub_graph_may_read_what_is_written_later(tmp_path):
    proto = parse(
        "g (float[2,4] x) => (float[2,4] y) { "
        "y = If (k) <then_branch = t () => (float[2,4] p) { p = Neg (a) }, "
        "else_branch = e () => (float[2,4] q) { q = Abs (x) }> "
        "a = Relu (x) s = ReduceSum <keepdims = 0> (x) z = Constant <value_float = 0.0> () "
        "k = Less (s, z) }"
    )
    assert operators(tmp_path, proto, X)[-1] == "If"


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("a = Add (x, b) b = Relu (a) y = Neg (b)", ('"a"', '"b"')),
        (
            "c = Constant <value_int = 1> () k = Cast <to = 9> (c) y = If (k) "
            "<then_branch = t () => (float[2,4] p) { p = Neg (a) }, "
            "else_branch = e () => (float[2,4] q) { q = Abs (x) }> a = Relu (y)",
            ('"a"', '"y"'),
        ),
    ],
    ids=["nodes", "sub_graph"],
)
def test_a_circle_is_refused_and_named(tmp_path, body, names):
    message = refusal(tmp_path, parse(f"{SIGNATURE} {{ {body} }}"))
    assert "depend on each other in a circle" in message
    assert all(name in message for name in names)


@pytest.mark.parametrize(
    ("imports", "opset"),
    [
        ((("ai.onnx", 13),), 13),
        ((("", 13), ("", 17)), 17),
        ((("", 17), ("ai.onnx", 13)), 13),
        ((("ai.onnx", 17), ("", 17)), 17),
        ((("ai.onnx.ml", 3),), 21),
    ],
)
def test_of_several_imports_of_a_domain_the_last_counts(tmp_path, imports, opset):
    """As in ONNX Runtime, which takes its newest where there is none."""
    proto = parse(f"{SIGNATURE} {{ y = Softmax <axis = 0> (x) }}")
    proto.graph.node[0].domain = "ai.onnx"
    del proto.opset_import[:]
    proto.opset_import.extend(onnx.helper.make_opsetid(*each) for each in imports)
    model = load_model(save(tmp_path, proto))
    assert model.opset_imports[""] == opset and "ai.onnx" not in model.opset_imports
    assert [node.domain for node in model.graph] == [""]


def test_an_import_that_is_missing_is_added(tmp_path):
    proto = parse(f"{SIGNATURE} {{ y = Relu (x) }}")
    node = onnx.helper.make_node(
        "Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[1.0] * 4, scale=[2.0] * 4
    )
    proto.graph.node[0].CopyFrom(node)
    model = load_model(save(tmp_path, proto))
    assert model.opset_imports == {"": 17, "ai.onnx.ml": 5}


TENSOR = onnx.helper.make_tensor_type_proto
STRINGS, FLOATS = TENSOR(onnx.TensorProto.STRING, [2]), TENSOR(onnx.TensorProto.FLOAT, [2, 4])
MAP = onnx.helper.make_map_type_proto(onnx.TensorProto.INT64, FLOATS)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (STRINGS, "tensor of string"),
        (TENSOR(onnx.TensorProto.COMPLEX64, [2]), "tensor of complex64"),
        (onnx.helper.make_sequence_type_proto(FLOATS), "sequence of tensor of float"),
        (onnx.helper.make_sequence_type_proto(MAP), "sequence of map"),
        (onnx.helper.make_optional_type_proto(FLOATS), "optional of tensor of float"),
        (
            onnx.helper.make_sparse_tensor_type_proto(onnx.TensorProto.FLOAT, [2]),
            "sparse tensor of float",
        ),
    ],
)
@pytest.mark.parametrize("what", ["input", "output"])
def test_what_is_no_tensor_of_numbers_is_refused(tmp_path, kind, words, what):
    proto = parse(f"{SIGNATURE} {{ y = Relu (x) }}")
    value = getattr(proto.graph, what)[0]
    value.type.CopyFrom(kind)
    message = refusal(tmp_path, proto)
    assert f'The {what} "{value.name}" of "model.onnx" is of type {words}, where' in message


def test_strings_inside_are_no_matter(tmp_path):
    proto = parse(f"{SIGNATURE} {{ s = Cast <to = 8> (x) b = Cast <to = 1> (s) y = Relu (b) }}")
    assert operators(tmp_path, proto, X) == ["Cast", "Cast", "Relu"]


@pytest.mark.parametrize("last", ["y = Relu (x)", "y = SequenceConstruct (x)"])
def test_an_output_without_a_type_is_what_is_inferred(tmp_path, last):
    proto = parse(f"{SIGNATURE} {{ {last} }}")
    proto.graph.output[0].ClearField("type")
    if "Sequence" in last:
        assert "is of type sequence of tensor of float" in refusal(tmp_path, proto)
    else:
        assert operators(tmp_path, proto, X) == ["Relu"]


@pytest.mark.parametrize(("opset", "body"), [(9, "y = Loop (x)"), (23, "y = Attention (x, x, x)")])
def test_whatever_the_converter_throws_is_a_sentence(tmp_path, monkeypatch, opset, body):
    monkeypatch.setattr("onnxq.load.version.newest_opset", lambda **_: SURE_OPSET)
    proto = parse(f"{SIGNATURE} {{ {body} }}", f'"" : {opset}')
    assert f"uses opset {opset} and can't be converted" in refusal(tmp_path, proto)


@pytest.mark.parametrize("claimed", ["float[2,4,1]", "float[3]"])
def test_an_initializer_has_the_shape_of_its_tensor(tmp_path, claimed):
    """On another that the graph's input declares, ONNX Runtime's optimiser reads past its end."""
    proto = parse(
        f"g (float[2,4] x, {claimed} w) => (float[2,4] y) "
        "<float[2,4] w = {1, 2, 3, 4, 5, 6, 7, 8}> { y = Add (x, w) }"
    )
    model = load_model(save(tmp_path, proto))
    assert [tuple(value.shape) for value in model.graph.initializers.values()] == [(2, 4)]


@pytest.mark.skipif(newest_opset() > SURE_OPSET, reason="newer ONNX Runtimes do not abort")
def test_a_model_that_ends_the_process_once_it_runs_is_refused(tmp_path):
    """ONNX Runtime aborts on an LSTM whose recurrent weight has two dimensions."""
    proto = parse(
        "g (float[5,2,9] x) => (float[n,m,2,4] y) { y = LSTM <hidden_size = 4> (x, w, r) }"
    )
    arrays = {"w": np.ones((1, 16, 9), np.float32), "r": np.ones((4, 16), np.float32)}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(*e[::-1]) for e in arrays.items())
    assert "crashes on the model" in refusal(tmp_path, proto)


def test_a_constant_that_reads_a_value_is_refused(tmp_path):
    proto = parse(f"{SIGNATURE} {{ c = Constant <value_float = 1.0> () y = Add (x, c) }}")
    proto.graph.node[0].input.append("elsewhere")
    assert '"c"' in (said := refusal(tmp_path, proto)) and '"elsewhere"' in said
