from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import build

from onnxq.normalise.clean import NameEverything
from onnxq.normalise.pipeline import normalise

BRANCHES = """<ir_version: 8, opset_import: ["" : 13]>
g (float[N,4] x, bool c) => (float[N,4] y) {
    a = Relu(x)
    y = If(c) <then_branch = t () => (float[N,4] p) { q = Relu(a) p = Neg(q) },
               else_branch = e () => (float[N,4] p) { q = Abs(a) p = Neg(q) }>
}"""


def _names(model: ir.Model) -> tuple[list[str | None], list[str | None]]:
    nodes = [node.name for node in model.graph.all_nodes()]
    values = [v.name for node in model.graph.all_nodes() for v in node.outputs]
    values += [v.name for v in [*model.graph.inputs, *model.graph.initializers.values()]]
    return nodes, values


def test_names_are_unique_in_sub_graphs_too():
    model = ir.from_onnx_text(BRANCHES)
    assert NameEverything()(model).modified
    for names in _names(model):
        assert all(names) and len(set(names)) == len(names)
    assert [v.name for v in model.graph.inputs] == ["x", "c"]
    assert [v.name for v in model.graph.outputs] == ["y"]
    assert not NameEverything()(model).modified


def test_nodes_are_called_after_their_operator_and_place():
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 13]> g (float[N] x) => (float[N] y) '
        "{ a = Relu(x) b = Neg(a) c = Relu(b) y = Relu(c) }"
    )
    first = model.graph[0]
    first.name = "Relu_1"
    NameEverything()(model)
    assert [node.name for node in model.graph] == ["Relu_1", "Neg_0", "Relu_0", "Relu_2"]


def test_existing_names_are_kept_and_doubles_numbered():
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 13]> g (float[N] x) => (float[N] y) '
        "{ a = Relu(x) y = Relu(a) }"
    )
    for node in model.graph:
        node.name = "layer"
    NameEverything()(model)
    assert [node.name for node in model.graph] == ["layer", "layer_1"]


def test_an_output_that_a_node_does_not_give_stays_without_a_name():
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 13]> g (float[N,4] x) => (float[N,2] y) '
        "{ z, y = Split<axis=1>(x) }"
    )
    model.graph[0].outputs[0].name = ""
    NameEverything()(model)
    assert not model.graph[0].outputs[0].name


@pytest.mark.parametrize(
    ("weight", "output", "name"),
    [
        ("encoder.0.key.weight", "y", "encoder.0.key/MatMul"),
        ("dense/kernel", "y", "dense/MatMul"),
        ("W1", "y", "W1/MatMul"),
        ("onnx::MatMul_12", "keys", "keys/MatMul"),
        ("12", "34", "MatMul_0"),
    ],
)
def test_a_layer_without_a_name_is_called_after_its_weight_or_output(weight, output, name):
    x, w = (
        ir.val("x", ir.DataType.FLOAT, ["N", 2]),
        ir.tensor(np.ones((2, 3), np.float32), name=weight),
    )
    node = ir.node("MatMul", [x, ir.Value(name=weight, const_value=w)])
    node.outputs[0].name = output
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[node.inputs[1]])
    node.name = None
    NameEverything()(ir.Model(graph, ir_version=8))
    assert node.name == name


def test_a_layer_that_onnxsim_made_keeps_the_name_of_the_one_that_had_its_weights():
    model = build(
        "net (float[N, 4, 8] x) => (float[N, 4, 8] y) { a = MatMul (x, w) y = Add (a, b) }",
        {"w": (8, 8), "b": (8,)},
        opset=17,
    )
    model.graph[0].name = "/encoder/query/MatMul"
    layers = [n.name for n in normalise(model).model.graph if n.op_type in ("Gemm", "MatMul")]
    assert layers == ["/encoder/query/MatMul"]
