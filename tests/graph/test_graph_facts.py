from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.graph.cut import ancestors, dependents
from onnxq.graph.editor import fix_inputs, free_initializer
from onnxq.graph.facts import (
    computed_from_constants,
    constant,
    has_subgraph,
    nested_nodes,
    reads,
    scalar,
    values_by_name,
)

NESTED = """<ir_version: 8, opset_import: ["" : 17]>
g (float[2] x, bool k) => (float[2] y) {
  a = Relu (x)
  b = Neg (x)
  y = If (k) <then_branch = t () => (float[2] p) { c = Abs (a) p = If (k) <
      then_branch = tt () => (float[2] q) { q = Add (b, c) },
      else_branch = te () => (float[2] r) { r = Neg (a) }> },
    else_branch = e () => (float[2] s) { s = Abs (x) }>
}"""


def test_what_a_node_reads_comes_from_outside_it():
    graph = ir.from_onnx_text(NESTED).graph
    assert [value.name for value in reads(graph[0])] == ["x"]
    assert {value.name for value in reads(graph[2])} == {"k", "a", "b", "x"}
    assert [node.op_type for node in nested_nodes(graph[2])] == ["Abs", "If", "Add", "Neg", "Abs"]
    assert has_subgraph(graph[2]) and not has_subgraph(graph[0])


@pytest.mark.parametrize(
    ("array", "expected"),
    [(6.0, 6.0), ([6.0], 6.0), ([], None), ([1.0, 2.0], None), ([[6.0]], None)],
)
def test_a_parameter_is_one_number_of_either_shape(array, expected):
    tensor = ir.tensor(np.array(array, np.float32))
    assert scalar(ir.Value(name="v", const_value=tensor), 3.0) == expected


def test_a_parameter_that_is_absent_or_computed():
    assert scalar(None, 3.0) == 3.0 and scalar(None) is None
    node = ir.node("Relu", [ir.val("x")])
    assert scalar(node.outputs[0], 3.0) is None


COMPUTED = """<ir_version: 8, opset_import: ["" : 17]>
g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
  c = Constant <value_floats = [1.0, 2.0]> ()
  a = Add (c, w)
  b = Mul (a, a)
  r = RandomNormal <shape = [2]> ()
  n = Add (r, w)
  y = Add (x, b)
}"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [("c", True), ("b", True), ("w", False), ("x", False), ("n", False), ("y", False)],
)
def test_what_is_computed_from_constants_alone(name, expected):
    values = values_by_name(ir.from_onnx_text(COMPUTED).graph)
    assert computed_from_constants(values[name]) == expected


def test_values_downstream_and_upstream():
    graph = ir.from_onnx_text(NESTED).graph
    values = values_by_name(graph)
    assert "p" not in values
    assert {v.name for v in dependents(graph, [values["a"]])} == {"a", "y"}
    without_a = dependents(graph, [values["x"]], lambda value: value.name != "a")
    assert {v.name for v in without_a} == {"x", "b", "y"}
    assert {v.name for v in ancestors(graph, [values["a"]])} == {"a", "x"}


def test_an_initializer_becomes_an_input_and_a_constant_again():
    graph = ir.from_onnx_text(COMPUTED).graph
    fresh = free_initializer(graph, graph.initializers["w"])
    assert [v.name for v in graph.inputs] == ["x", "w"] and not graph.initializers
    assert graph.node(1).inputs[1] is fresh and fresh.dtype == ir.DataType.FLOAT
    fix_inputs(graph, {"w": np.array([3, 4], np.float32)})
    assert [v.name for v in graph.inputs] == ["x"]
    assert constant(graph.node(1).inputs[1]).tolist() == [3, 4]
