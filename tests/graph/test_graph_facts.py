from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.graph.facts import has_subgraph, nested_nodes, reads, scalar

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
