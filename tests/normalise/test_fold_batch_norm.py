from __future__ import annotations

import numpy as np
import pytest

from onnxq.normalise.affine import BatchNormToAffine, FoldAffine, FoldBatchNorm


def _norm(channels: int, seed: int = 1) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "gamma": generator.uniform(0.5, 2, channels),
        "beta": generator.standard_normal(channels),
        "mean": generator.standard_normal(channels),
        "var": generator.uniform(0.1, 3, channels),
    }


def _weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


NORM = "float[C] gamma, float[C] beta, float[C] mean, float[C] var"


def _ops(model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("group", "inner"), [(1, 4), (2, 2), (4, 1)])
def test_folds_into_convolutions(graph, applies, bias, group, inner):
    model = graph(
        f"(float[N,4,5,5] x, float[a,b,c,d] w, float[e] bias, {NORM}) => (float[N,8,5,5] y)",
        f"c = Conv<group={group}, pads=[1,1,1,1]>(x, w{', bias' if bias else ''}) "
        "y = BatchNormalization<epsilon=0.01>(c, gamma, beta, mean, var)",
        w=_weights(8, inner, 3, 3),
        bias=_weights(8),
        **_norm(8),
    )
    changed = applies(FoldBatchNorm(), model)
    assert _ops(changed) == ["Conv"]
    assert changed.graph.outputs[0].name == "y"


@pytest.mark.parametrize("group", [1, 2])
def test_folds_into_transposed_convolutions(graph, applies, group):
    model = graph(
        f"(float[N,4,5,5] x, float[a,b,c,d] w, float[e] bias, {NORM}) => (float[N,6,9,9] y)",
        f"c = ConvTranspose<group={group}, strides=[2,2], pads=[1,1,1,1]>(x, w, bias) "
        "y = BatchNormalization(c, gamma, beta, mean, var)",
        w=_weights(4, 6 // group, 3, 3),
        bias=_weights(6),
        **_norm(6),
    )
    assert _ops(applies(FoldBatchNorm(), model)) == ["ConvTranspose"]


@pytest.mark.parametrize("attributes", ["", "<transB=1>", "<alpha=0.5, beta=2.0>"])
def test_folds_into_gemm(graph, applies, attributes):
    shape = (6, 4) if "transB" in attributes else (4, 6)
    model = graph(
        f"(float[N,4] x, float[a,b] w, float[e] bias, {NORM}) => (float[N,6] y)",
        f"c = Gemm{attributes}(x, w, bias) y = BatchNormalization(c, gamma, beta, mean, var)",
        w=_weights(*shape),
        bias=_weights(6),
        **_norm(6),
    )
    assert _ops(applies(FoldBatchNorm(), model)) == ["Gemm"]


@pytest.mark.parametrize("add", [False, True])
def test_folds_into_matmul_as_gemm(graph, applies, add):
    model = graph(
        f"(float[N,4] x, float[a,b] w, float[e] bias, {NORM}) => (float[N,6] y)",
        f"m = MatMul(x, w) {'c = Add(m, bias)' if add else ''} "
        f"y = BatchNormalization({'c' if add else 'm'}, gamma, beta, mean, var)",
        w=_weights(4, 6),
        bias=_weights(6),
        **_norm(6),
    )
    if add:
        FoldAffine()(model)
    assert "Gemm" in _ops(applies(FoldBatchNorm(), model))


def test_folds_after_a_bias_that_is_an_add(graph, applies):
    model = graph(
        f"(float[N,4,5,5] x, float[a,b,c,d] w, float[1,e,1,1] bias, {NORM}) => (float[N,8,5,5] y)",
        "c = Conv<pads=[1,1,1,1]>(x, w) a = Add(bias, c) "
        "y = BatchNormalization(a, gamma, beta, mean, var)",
        w=_weights(8, 4, 3, 3),
        bias=_weights(1, 8, 1, 1),
        **_norm(8),
    )
    changed = applies(FoldBatchNorm(), applies(FoldAffine(), model))
    assert _ops(changed) == ["Conv"]


def test_keeps_its_hands_off_a_shared_weight(graph, applies):
    model = graph(
        f"(float[N,4,5,5] x, float[a,b,c,d] w, {NORM}) => (float[N,4,3,3] y, float[N,4,3,3] z)",
        "c = Conv(x, w) y = BatchNormalization(c, gamma, beta, mean, var) z = Conv(x, w)",
        w=_weights(4, 4, 3, 3),
        **_norm(4),
    )
    shared = model.graph.initializers["w"]
    changed = applies(FoldBatchNorm(), model)
    first, second = list(changed.graph)
    assert second.inputs[1] is shared and first.inputs[1] is not shared


@pytest.mark.parametrize(
    ("outputs", "body"),
    [
        ("float[N,4,3,3] y, float[N,4,3,3] c", "c = Conv(x, w) "),
        ("float[N,4,3,3] y, float[N,4,3,3] z", "c = Conv(x, w) z = Relu(c) "),
        ("float[N,4,3,3] y", "d = Conv(x, w) c = Relu(d) "),
    ],
    ids=["graph output", "two readers", "no layer before it"],
)
def test_refuses(graph, refuses, outputs, body):
    model = graph(
        f"(float[N,4,5,5] x, float[a,b,c,d] w, {NORM}) => ({outputs})",
        body + "y = BatchNormalization(c, gamma, beta, mean, var)",
        w=_weights(4, 4, 3, 3),
        **_norm(4),
    )
    refuses(FoldBatchNorm(), model)


def test_refuses_a_layer_whose_output_a_sub_graph_reads(graph, refuses):
    model = graph(
        f"(float[N,4,5,5] x, bool k, float[a,b,c,d] w, {NORM})"
        " => (float[N,4,3,3] y, float[N,4,3,3] z)",
        "c = Conv(x, w) y = BatchNormalization(c, gamma, beta, mean, var) "
        "z = If(k) <then_branch = t () => (float[N,4,3,3] p) { p = Relu(c) },"
        " else_branch = e () => (float[N,4,3,3] p) { p = Neg(y) }>",
        w=_weights(4, 4, 3, 3),
        **_norm(4),
    )
    refuses(FoldBatchNorm(), model)


def test_refuses_weights_and_parameters_that_are_inputs(graph, refuses):
    signature = f"(float[N,4,5,5] x, float[4,4,3,3] w, {NORM}) => (float[N,4,3,3] y)"
    body = "c = Conv(x, w) y = BatchNormalization(c, gamma, beta, mean, var)"
    refuses(FoldBatchNorm(), graph(signature, body, **_norm(4)))
    refuses(FoldBatchNorm(), graph(signature, body, w=_weights(4, 4, 3, 3)))


@pytest.mark.parametrize("shape", ["N,4", "N,4,5", "N,4,5,5"])
def test_becomes_a_factor_and_a_term(graph, applies, shape):
    model = graph(
        f"(float[{shape}] x, {NORM}) => (float[{shape}] y)",
        "r = Relu(x) n = BatchNormalization(r, gamma, beta, mean, var) y = Relu(n)",
        **_norm(4),
    )
    assert _ops(applies(BatchNormToAffine(), model)) == ["Relu", "Mul", "Add", "Relu"]


def test_stays_where_its_parameters_are_computed(graph, refuses):
    model = graph(
        f"(float[N,4,5,5] x, {NORM}) => (float[N,4,5,5] y)",
        "y = BatchNormalization(x, gamma, beta, mean, var)",
    )
    refuses(BatchNormToAffine(), model)


@pytest.mark.parametrize("name", ["gamma", "beta", "mean", "var"])
def test_stays_where_its_parameters_are_of_several_sizes(graph, refuses, name):
    model = graph(
        f"(float[N,4,5,5] x, {NORM}) => (float[N,4,5,5] y)",
        "y = BatchNormalization(x, gamma, beta, mean, var)",
        **{**_norm(4), name: np.zeros(0)},
    )
    refuses(FoldBatchNorm(), model)
    refuses(BatchNormToAffine(), model)
