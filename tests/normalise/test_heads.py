"""The last layers of a classifier."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.normalise.gemm import ConvToGemm
from onnxq.normalise.spatial import PoolBeforeConv


def _ops(model) -> list[str]:
    return [node.op_type for node in model.graph]


def _weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def _head(graph, signature, body):
    return graph(
        f"(float[{signature}] x, float[a,b,c,d] w, float[e] bias, int64[2] s) => (float y)",
        body,
        w=_weights(5, 4, 1, 1),
        bias=_weights(5),
        s=np.array([-1, 5]),
    )


def test_the_pool_goes_first(graph, applies):
    model = _head(graph, "N,4,3,3", "c = Conv(x, w, bias) p = GlobalAveragePool(c) y = Flatten(p)")
    changed = applies(PoolBeforeConv(), model)
    assert _ops(changed) == ["GlobalAveragePool", "Conv", "Flatten"]
    assert [n.name for n in changed.graph] == ["GlobalAveragePool_0", "w/Conv", "Flatten_0"]
    assert _ops(applies(ConvToGemm(), changed)) == ["GlobalAveragePool", "Flatten", "Gemm"]


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv<pads=[1,1,1,1]>(x, w, bias) y = GlobalAveragePool(c)",
        "c = Conv<strides=[2,2]>(x, w, bias) y = GlobalAveragePool(c)",
        "c = Conv(x, w, bias) p = GlobalAveragePool(c) r = Relu(c) y = Add(p, r)",
        "c = Conv(x, w, bias) r = Relu(c) y = GlobalAveragePool(r)",
    ],
    ids=["pads", "stride", "two readers", "not linear"],
)
def test_the_pool_stays(graph, refuses, body):
    refuses(PoolBeforeConv(), _head(graph, "N,4,3,3", body))


@pytest.mark.parametrize(
    ("last", "count"),
    [
        ("y = Flatten(c)", 2),
        ("y = Reshape(c, s)", 2),
        ("y = Squeeze(c, axes)", 2),
        ("y = Identity(c)", None),
    ],
)
def test_a_convolution_of_one_pixel_is_a_gemm(graph, applies, refuses, last, count):
    model = graph(
        "(float[N,4,3,3] x, float[a,b,c,d] w, float[e] bias, int64[2] s, int64[2] axes)"
        " => (float y)",
        f"p = GlobalAveragePool(x) c = Conv(p, w, bias) {last}",
        w=_weights(5, 4, 1, 1),
        bias=_weights(5),
        s=np.array([-1, 5]),
        axes=np.array([2, 3]),
    )
    if count is None:
        refuses(ConvToGemm(), model)
        return
    changed = applies(ConvToGemm(), model)
    assert _ops(changed) == ["GlobalAveragePool", "Flatten", "Gemm"]
    assert changed.graph[2].name == "w/Conv"


def test_a_convolution_that_the_graph_returns_keeps_its_shape(graph, applies):
    model = _head(graph, "N,4,1,1", "y = Conv(x, w, bias)")
    assert _ops(applies(ConvToGemm(), model)) == ["Flatten", "Gemm", "Unsqueeze"]


@pytest.mark.parametrize("shape", ["N,4,2,1", "N,4,H,W"])
def test_a_convolution_of_more_pixels_stays(graph, refuses, shape):
    refuses(ConvToGemm(), _head(graph, shape, "c = Conv(x, w, bias) y = Flatten(c)"))


def test_a_convolution_read_twice_stays(graph, refuses):
    body = "c = Conv(x, w, bias) f = Flatten(c) g = Flatten(c) y = Add(f, g)"
    refuses(ConvToGemm(), _head(graph, "N,4,1,1", body))


def test_a_convolution_that_a_sub_graph_flattens_stays(graph, refuses):
    model = graph(
        "(float[N,4,1,1] x, float[3,4,1,1] w, bool k) => (float[N,3] y)",
        "a = Conv(x, w) y = If(k) <then_branch = t () => (float[N,3] u) { u = Flatten(a) }, "
        "else_branch = e () => (float[N,3] v) { s = Flatten(x) "
        "c = Constant <value_ints = [0]> () d = Constant <value_ints = [3]> () "
        "o = Constant <value_ints = [1]> () v = Slice(s, c, d, o) }>",
        w=np.ones((3, 4, 1, 1)),
        k=np.array(True),
    )
    refuses(ConvToGemm(), model)
