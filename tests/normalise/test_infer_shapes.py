from __future__ import annotations

import onnx_ir as ir

from onnxq.normalise.infer_shapes import InferShapes
from onnxq.normalise.pipeline import normalise


def test_an_invented_name_gives_way_to_what_is_known(graph):
    model = graph("(float[N,4] x) => (float[N,4] y)", "a = Relu(x) y = Neg(a)")
    value = model.graph[0].outputs[0]
    value.shape = ir.Shape(["unk__1", 4])
    assert not InferShapes()(model).modified
    assert value.shape == ir.Shape(["N", 4])


def test_sequences_keep_their_types(graph):
    model = graph(
        "(float[N,4] x, float[N,4] z) => (float[N,4] y)",
        "s = SequenceConstruct(x, z) r = ConcatFromSequence<axis=0>(s) y = Relu(r)",
    )
    assert [node.op_type for node in normalise(model).model.graph] == [
        "SequenceConstruct",
        "ConcatFromSequence",
        "Relu",
    ]
