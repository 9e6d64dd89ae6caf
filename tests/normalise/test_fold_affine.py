from __future__ import annotations

import numpy as np
import pytest

from onnxq.normalise.affine import FoldAffine


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 2, shape)


def _ops(model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (6, 1, 1), (1,), ()])
@pytest.mark.parametrize(
    "op", ["Mul(c, k)", "Mul(k, c)", "Div(c, k)", "Add(c, k)", "Add(k, c)", "Sub(c, k)"]
)
def test_folds_into_a_convolution(graph, applies, op, shape):
    model = graph(
        "(float[N,4,5,5] x, float[a,b,c,d] w, float[e] bias, float k) => (float[N,6,3,3] y)",
        f"c = Conv(x, w, bias) y = {op}",
        w=_random(6, 4, 3, 3),
        bias=_random(6),
        k=_random(*shape),
    )
    assert _ops(applies(FoldAffine(), model)) == ["Conv"]


def test_folds_a_pair_that_stands_for_batch_norm(graph, applies):
    model = graph(
        "(float[N,4,5,5] x, float[a,b,c,d] w, float k, float t) => (float[N,6,3,3] y)",
        "c = Conv(x, w) m = Mul(c, k) a = Add(m, t) y = Relu(a)",
        w=_random(6, 4, 3, 3),
        k=_random(6, 1, 1),
        t=_random(1, 6, 1, 1),
    )
    assert _ops(applies(FoldAffine(), model)) == ["Conv", "Relu"]


def test_makes_a_gemm_of_matmul_and_add(graph, applies):
    model = graph(
        "(float[N,4] x, float[a,b] w, float[e] bias) => (float[N,6] y)",
        "m = MatMul(x, w) y = Add(m, bias)",
        w=_random(4, 6),
        bias=_random(6),
    )
    changed = applies(FoldAffine(), model)
    assert _ops(changed) == ["Gemm"]
    assert changed.graph[0].name == "w/MatMul"


def test_folds_a_factor_into_a_batched_matmul(graph, applies):
    model = graph(
        "(float[N,3,4] x, float[a,b] w, float[e] k) => (float[N,3,6] y)",
        "m = MatMul(x, w) y = Mul(m, k)",
        w=_random(4, 6),
        k=_random(6),
    )
    assert _ops(applies(FoldAffine(), model)) == ["MatMul"]


def test_folds_into_batch_norm_and_keeps_its_statistics(graph, applies):
    model = graph(
        "(float[N,4,5,5] x, float[4] g, float[4] b, float[4] m, float[4] v, float k, float t)"
        " => (float[N,4,5,5] y)",
        "n = BatchNormalization(x, g, b, m, v) s = Mul(n, k) y = Add(s, t)",
        **{name: _random(4, seed=i) for i, name in enumerate("gbmv")},
        k=_random(4, 1, 1),
        t=_random(4, 1, 1),
    )
    mean, variance = (model.graph.initializers[name] for name in "mv")
    changed = applies(FoldAffine(), model)
    assert _ops(changed) == ["BatchNormalization"]
    assert changed.graph[0].inputs[3] is mean and changed.graph[0].inputs[4] is variance


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("c = Conv(x, w) y = Mul(c, k)", (3, 3)),
        ("c = Conv(x, w) y = Sub(k, c)", (6, 1, 1)),
        ("c = Conv(x, w) r = Relu(c) y = Mul(r, k)", (6, 1, 1)),
        ("c = Conv(x, w) m = Mul(c, k) y = Add(m, c)", (6, 1, 1)),
        ("c = Conv(x, w) y = Mul(c, k)", (1, 1, 6, 1, 1)),
    ],
    ids=["per position", "constant minus layer", "not a layer", "two readers", "higher rank"],
)
def test_refuses(graph, refuses, body, shape):
    model = graph(
        "(float[N,4,5,5] x, float[a,b,c,d] w, float k) => (float y)",
        body,
        w=_random(6, 4, 3, 3),
        k=_random(*shape),
    )
    refuses(FoldAffine(), model)


def test_refuses_a_term_after_a_batched_matmul(graph, refuses):
    model = graph(
        "(float[N,3,4] x, float[a,b] w, float[e] k) => (float[N,3,6] y)",
        "m = MatMul(x, w) y = Add(m, k)",
        w=_random(4, 6),
        k=_random(6),
    )
    refuses(FoldAffine(), model)
