from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.normalise.infer_shapes import AskRuntime, InferShapes
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


def test_a_name_that_outputs_share_is_forgotten(graph):
    """Exporters call different sizes "dim"; ONNX Runtime would share a buffer between them."""
    model = graph(
        "(float[N,4] x) => (float[N,dim] y, float[dim,4] z)",
        "y = Relu(x) z = NonZero(x)",
    )
    model.graph.outputs[1].shape = ir.Shape(["dim", 4])
    model.graph.outputs[0].shape = ir.Shape(["N", "dim"])
    InferShapes()(model)
    names = [dim.value for v in model.graph.outputs for dim in v.shape if not isinstance(dim, int)]
    assert "dim" not in names
    assert "N" in names


def test_a_rank_that_only_the_reader_tells(graph):
    model = graph(
        "(float[N,4] x, float[4,3] w) => (float[N,3] y)",
        'n = ai.onnx.ml.Normalizer <norm = "L2"> (x) r = Relu(n) g = Gemm(r, w) y = Neg(g)',
        w=np.ones((4, 3)),
    )
    normalizer, relu, gemm, _ = model.graph
    AskRuntime()(model)
    assert normalizer.outputs[0].dtype == ir.DataType.FLOAT
    assert normalizer.outputs[0].shape is None, "ONNX Runtime says [] of what it does not know"
    InferShapes()(model)
    assert len(relu.outputs[0].shape) == 2
    assert len(gemm.outputs[0].shape) == 2
