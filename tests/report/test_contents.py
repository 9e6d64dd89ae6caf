"""Every byte of a file is accounted for, whatever holds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq.export.save import save_model
from onnxq.load.contents import read_contents
from onnxq.load.read import file_bytes, read_proto
from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.report.contents import GRAPH, ContentRow
from onnxq.report.inspection import Inspection, inspect
from onnxq.report.tables import print_contents, print_layers
from tests.small_graphs import Feeds, build, quantize, small_graph

SAMPLES = sorted((Path(__file__).parents[2] / "sample_models").glob("*.onnx"))

ARRAYS = {
    "table": (50, 8),
    "shared": (8, 8),
    "lstm_w": (1, 16, 8),
    "lstm_r": (1, 16, 4),
    "lstm_b": (1, 32),
    "inner": (4, 4),
    "unused": (3, 5),
    "head": (4, 6),
}

BODY = """
net (int64[N, 3] ids, bool flag) => (float[N, 3, 6] y)
<float[50, 8] table, float[8, 8] shared, float[1, 16, 8] lstm_w, float[1, 16, 4] lstm_r,
 float[1, 32] lstm_b, float[4, 4] inner, float[3, 5] unused, float[4, 6] head>
{
  e = Gather (table, ids)
  a = MatMul (e, shared)
  b = Relu (a)
  c = MatMul (b, shared)
  t = Transpose <perm = [1, 0, 2]> (c)
  l, h, s = LSTM <hidden_size = 4> (t, lstm_w, lstm_r, lstm_b)
  k = Constant <value = float[1] {0.5}> ()
  axes = Constant <value_ints = [1]> ()
  q = Squeeze (l, axes)
  f = Mul (q, k)
  g = If (flag) <
    then_branch = then () => (float[L, M, 4] o) {
      w = Constant <value = float[4, 4] {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}> ()
      o = MatMul (f, w)
    },
    else_branch = other () => (float[L, M, 4] p) { p = MatMul (f, inner) }
  >
  r = Transpose <perm = [1, 0, 2]> (g)
  turned = Transpose <perm = [1, 0]> (head)
  back = Transpose <perm = [1, 0]> (turned)
  y = MatMul (r, back)
}
"""


def _model() -> onnx.ModelProto:
    header = '<ir_version: 8, opset_import: ["" : 13]>'
    model = onnx.parser.parse_model(f"{header} {BODY}")
    rng = np.random.default_rng(0)
    del model.graph.initializer[:]
    for name, shape in ARRAYS.items():
        array = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def _saved(model: onnx.ModelProto, folder: Path, **external: object) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path, **external)
    return path


def _rows(found: Inspection) -> dict[str, ContentRow]:
    assert sum(row.bytes for row in found.contents) == found.size
    assert [row.bytes for row in found.contents] == sorted(
        (row.bytes for row in found.contents), reverse=True
    )
    return {row.what: row for row in found.contents}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_the_sum_of_a_sample_model_is_its_file(path):
    contents = read_contents(read_proto(path), path)
    assert contents.size == path.stat().st_size
    known = sum(tensor.nbytes for tensor in map(numpy_helper.to_array, _initializers(path)))
    assert sum(tensor.bytes for tensor in contents.tensors) >= known
    assert 0 < contents.graph < path.stat().st_size - known + 1


def _initializers(path: Path) -> list[onnx.TensorProto]:
    return list(onnx.load(path).graph.initializer)


def test_each_kind_of_constant_has_its_row(tmp_path):
    rows = _rows(inspect(_saved(_model(), tmp_path)))
    gather = rows["tables of Gather"]
    assert (gather.tensors, gather.bytes, gather.largest) == (1, 4 * 400, "table")
    lstm = rows["weights of LSTM"]
    assert (lstm.tensors, lstm.bytes) == (3, 4 * (128 + 64 + 32))
    assert "no integer kernel" in lstm.reason
    assert not lstm.quantized
    assert rows["constants that nothing reads"].bytes == 4 * 15
    assert rows[GRAPH].tensors == 0


def test_what_is_in_a_subgraph_stays_and_says_so(tmp_path):
    # They are small: with settings of their own they are quantized all the same.
    recipe = Recipe(layers=(LayerOverride("MatMul", weight_bits=8),))
    contents = inspect(_saved(_model(), tmp_path), recipe).contents
    found = [row for row in contents if "MatMul" in row.what]
    inside, layers = sorted(found, key=lambda row: row.quantized)
    # What two layers share is there once; the transposed one belongs to the layer it reaches.
    assert (layers.tensors, layers.bytes) == (2, 4 * (64 + 24))
    assert (inside.tensors, inside.bytes) == (2, 4 * (16 + 16))
    assert "sub-graph" in inside.reason


def test_layers_that_share_weights_count_them_once(tmp_path, capsys):
    found = inspect(_saved(_model(), tmp_path))
    shared = [row for row in found.layers if row.weight == "shared"]
    assert [bool(row.shares) for row in shared] == [False, True]
    print_layers(shared)
    assert f"weights 256 B -> {shared[0].bytes_after} B" in capsys.readouterr().out
    print_contents(found.contents)
    assert f"{found.size:,}" in capsys.readouterr().out


@pytest.mark.parametrize("attributes", [False, True], ids=["initializers", "attributes too"])
def test_external_data_are_part_of_the_sum(tmp_path, attributes):
    settings = {"size_threshold": 64, "convert_attribute": attributes, "location": "weights"}
    path = _saved(_model(), tmp_path, save_as_external_data=True, **settings)
    found = inspect(path)
    assert found.size == path.stat().st_size + (tmp_path / "weights").stat().st_size
    assert found.size == file_bytes(path)
    assert _rows(found)["tables of Gather"].bytes == 4 * 400


def test_a_place_that_two_tensors_share_counts_once(tmp_path):
    model = _model()
    copy = model.graph.initializer.add()
    copy.CopyFrom(model.graph.initializer[1])
    copy.name = "copy"
    model.graph.node[3].input[1] = "copy"
    path = _saved(model, tmp_path, save_as_external_data=True, size_threshold=0, location="w")
    model = onnx.load(path, load_external_data=False)
    by_name = {tensor.name: tensor for tensor in model.graph.initializer}
    del by_name["copy"].external_data[:]
    by_name["copy"].external_data.extend(by_name["shared"].external_data)
    path.write_bytes(model.SerializeToString())
    contents = read_contents(read_proto(path), path)
    assert contents.size == file_bytes(path)
    assert [each.bytes for each in contents.tensors if each.name in ("shared", "copy")] == [256, 0]
    assert contents.gaps >= 256


def test_values_in_typed_fields_and_lists_count_as_they_are_stored(tmp_path):
    tensors = [
        helper.make_tensor("w", TensorProto.FLOAT, (4, 2), [0.5] * 8),
        helper.make_tensor("i", TensorProto.INT64, (2,), [0, 1]),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Gather", ["m", "i"], ["y"], axis=1),
    ]
    interface = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])]
        for name, size in (("x", 4), ("y", 2))
    ]
    graph = helper.make_graph(nodes, "g", *interface, tensors)
    opset = [helper.make_opsetid("", 13)]
    path = _saved(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path)
    rows = _rows(inspect(path))
    assert rows["weights of MatMul"].bytes == 4 * 8
    # Two bytes of tag and length, and one for each small number.
    assert rows["shapes, indices and other integers"].bytes == 4


def test_the_parts_of_a_tree_model_are_in_its_attributes(tmp_path):
    values = {"coefficients": [0.5, 0.25, 1.0, 2.0], "intercepts": [0.1]}
    node = helper.make_node("LinearRegressor", ["x"], ["y"], domain="ai.onnx.ml", **values)
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
        for name, size in (("x", 4), ("y", 1))
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("ai.onnx.ml", 1)]
    graph = helper.make_graph([node], "g", [x], [y])
    path = _saved(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path)
    rows = _rows(inspect(path))
    # A float in a list takes a byte more than four.
    assert rows["attributes of LinearRegressor"].bytes + rows["single numbers"].bytes == 5 * 5


def test_constants_of_a_function_are_found_where_it_is_defined(tmp_path):
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        net (float[N, 2] x) => (float[N, 2] y) { y = local.twice (x) }
        <domain: "local", opset_import: ["" : 17]>
        twice (a) => (b) {
          w = Constant <value = float[2, 2] {1, 2, 3, 4}> ()
          b = MatMul (a, w)
        }"""
    )
    path = _saved(model, tmp_path)
    assert _rows(inspect(path))["weights of MatMul"].bytes == 16


@pytest.mark.parametrize(
    "recipe", [Recipe(), Recipe(weight_bits=3), Recipe(codebook=8)], ids=["codes", "packed", "book"]
)
def test_a_compressed_files_codes_are_the_weights_of_its_layers(tmp_path, recipe):
    path = tmp_path / "small.onnx"
    exported = quantize(small_graph("transposed"), recipe=recipe).exported
    exported.metadata_props["onnxq.version"] = "1"
    save_model(exported, path)
    found = inspect(path)
    rows = _rows(found)
    assert found.size == path.stat().st_size
    for operator in ("Conv", "Gemm", "ConvTranspose"):
        codes = sum(row.bytes_after for row in found.layers if row.op_type == operator)
        weights = rows[f"weights of {operator}"]
        assert weights.quantized
        # The codes, their scales, and what unpacks them.
        assert codes < weights.bytes < codes + 400
    assert rows["scales and zero points of tensors"].bytes < 100


def test_a_table_that_onnxq_wrote_is_a_layer_of_the_file(tmp_path):
    text = """net (int64[N, 3] ids) => (float[N, 3, 40] y) {
        e = Gather (table, ids) r = Relu (e) y = MatMul (r, w)
    }"""
    teacher = build(text, {"table": (64, 32), "w": (32, 40)})
    ids = np.arange(48).reshape(16, 3)
    exported = quantize(teacher, Feeds([{"ids": ids}])).exported
    exported.metadata_props["onnxq.version"] = "1"
    save_model(exported, tmp_path / "small.onnx")
    found = inspect(tmp_path / "small.onnx")
    assert [(row.op_type, row.bytes_after) for row in found.layers] == [
        ("Gather", 64 * 32),
        ("MatMul", 32 * 40),
    ]
    assert found.layers[0].compute == "weight-only"
    tables = {row.quantized: row.bytes for row in found.contents if "Gather" in row.what}
    assert tables == {True: 64 * 32, False: 4 * 64}
