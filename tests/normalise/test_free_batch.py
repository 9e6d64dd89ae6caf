from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxq.load.interface import input_specs
from onnxq.normalise.free_batch import FreeBatch
from onnxq.normalise.pipeline import normalise

WEIGHTS = np.random.default_rng(0).standard_normal((12, 5))


def _fixed(graph, shape, batch=1):
    return graph(
        f"(float[{batch},3,2,2] x, int64[2] s, float[a,b] w) => (float[{batch},5] y)",
        "f = Reshape(x, s) y = MatMul(f, w)",
        s=np.array(shape),
        w=WEIGHTS,
    )


@pytest.mark.parametrize("shape", [[1, -1], [1, 12]])
def test_a_reshape_to_one_sample_takes_any(graph, shape):
    model = _fixed(graph, shape)
    result = FreeBatch()(model)
    assert result.modified
    assert model.graph[0].inputs[1].const_value.numpy()[0] == 0
    assert not FreeBatch()(model).modified
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.parametrize("batch", [1, 3])
def test_normalise_frees_a_fixed_batch(graph, batch):
    result = normalise(_fixed(graph, [batch, -1], batch))
    assert result.batch_free and result.notes == []
    assert [spec.shape for spec in input_specs(result.model)] == [(None, 3, 2, 2)]


def test_a_declared_batch_is_checked(graph):
    mixing = graph("(float[N,4] x) => (float[N,4] y)", "m = ReduceMax<axes=[0]>(x) y = Sub(x, m)")
    result = normalise(mixing)
    assert not result.batch_free
    assert "reduces over all samples" in result.notes[0]
    assert normalise(graph("(float[N,4] x) => (float[N,4] y)", "y = Relu(x)")).batch_free


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("float[1,4] x, float[2,4] z", "y = Add(x, z)"),
        ("float[1,4] x, float z", "y = Add(x, z)"),
        ("float[1,4] x", "y = ReduceSum(x)"),
        ("float[1,4] x", "t = Transpose(x) s = Softmax<axis=1>(t) y = Transpose(s)"),
        ("float[1,4] x", "c = CumSum(x, zero) y = Relu(c)"),
    ],
    ids=["two sizes", "no batch", "scalar output", "not run per sample", "leaks"],
)
def test_a_batch_that_can_not_be_freed_stays(graph, signature, body):
    model = graph(f"({signature}, int64 zero) => (float y)", body, zero=np.array(0))
    result = normalise(model)
    fixed = [spec.shape for spec in input_specs(result.model)]
    assert fixed == [spec.shape for spec in input_specs(model)]
    assert not result.batch_free and len(result.notes) == 1
    assert result.notes[0].endswith(".")


@pytest.mark.parametrize("shape", [[1, 12], [1, -1]])
def test_a_batch_that_is_declared_free_and_is_not_is_freed(graph, shape):
    model = graph(
        "(float[N,3,2,2] x, int64[2] s, float[a,b] w) => (float y)",
        "f = Reshape(x, s) y = MatMul(f, w)",
        s=np.array(shape),
        w=WEIGHTS,
    )
    result = normalise(model)
    assert result.batch_free and result.notes == []


def test_a_model_that_only_runs_at_one_is_run_one_by_one(graph):
    model = graph(
        "(float[N,4] x, int64[1] zero, int64[1] one) => (float y)",
        "f = Slice(x, zero, one, zero) y = Relu(f)",
        zero=np.array([0]),
        one=np.array([1]),
    )
    feeds = [{"x": np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)}]
    result = normalise(model, feeds)
    assert not result.batch_free
    assert result.notes == [
        "Samples are run one by one, since in a batch "
        'output "y" is float32[1, 4] instead of float32[2, 4].'
    ]


def test_feeds_of_many_samples_are_cut_to_the_fixed_batch(graph):
    feeds = [{"x": np.random.default_rng(0).standard_normal((4, 3, 2, 2)).astype(np.float32)}]
    assert normalise(_fixed(graph, [1, -1]), feeds).batch_free
    assert normalise(_fixed(graph, [1, -1]), lambda size: {"x": feeds[0]["x"][:size]}).batch_free


def test_a_shape_computed_from_constants_is_freed_too(graph):
    model = graph(
        "(float[1,3,2,2] x, int64[1] one, int64[1] rest, float[a,b] w) => (float[1,5] y)",
        "s = Concat<axis=0>(one, rest) f = Reshape(x, s) y = MatMul(f, w)",
        one=np.array([1]),
        rest=np.array([-1]),
        w=WEIGHTS,
    )
    assert normalise(model).batch_free
