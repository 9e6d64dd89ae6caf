"""Activations written with Min, Max and PRelu."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.normalise.plain_nodes import MinMaxToClip, PReluToLeakyRelu


def _ops(model) -> list[str]:
    return [node.op_type for node in model.graph]


def _graph(graph, body, shape="N,4"):
    return graph(
        f"(float[{shape}] x, float low, float mid, float high, float[1] one) => (float[{shape}] y)",
        body,
        low=np.float32(-0.5),
        mid=np.float32(0),
        high=np.float32(0.5),
        one=np.array([0.25]),
    )


@pytest.mark.parametrize(
    "body",
    [
        "y = Max(x, low)",
        "y = Min(high, x)",
        "y = Min(x, one)",
        "a = Max(x, low) y = Min(a, high)",
        "a = Relu(x) y = Min(a, high)",
        "a = Clip(x, low, high) y = Clip(a, mid)",
        "a = Clip(x, low, mid) y = Max(a, high)",
        "a = Clip(x, high) y = Min(a, low)",
    ],
)
def test_becomes_one_clip(graph, applies, body):
    assert _ops(applies(MinMaxToClip(), _graph(graph, body))) == ["Clip"]


def test_a_clip_read_twice_stays(graph, applies):
    model = _graph(graph, "a = Relu(x) b = Min(a, high) y = Add(a, b)")
    assert _ops(applies(MinMaxToClip(), model)) == ["Relu", "Clip", "Add"]


@pytest.mark.parametrize(
    "body",
    ["y = Max(x, x)", "y = Clip(x, low, high)", "a = Neg(x) y = Min(a, low, high)"],
    ids=["no constant", "a clip", "three inputs"],
)
def test_stays(graph, refuses, body):
    refuses(MinMaxToClip(), _graph(graph, body))


def test_limits_per_channel_stay(graph, refuses):
    model = graph("(float[N,4] x, float[4] k) => (float[N,4] y)", "y = Min(x, k)", k=np.arange(4.0))
    refuses(MinMaxToClip(), model)


@pytest.mark.parametrize("slopes", [(1,), (4, 1, 1), ()])
def test_equal_slopes_are_leaky_relu(graph, applies, slopes):
    model = graph(
        "(float[N,4,3,3] x, float k) => (float[N,4,3,3] y)",
        "y = PRelu(x, k)",
        k=np.full(slopes, 0.1),
    )
    assert _ops(applies(PReluToLeakyRelu(), model)) == ["LeakyRelu"]


def test_other_slopes_stay(graph, refuses):
    signature = "(float[N,4] x, float[4] k) => (float[N,4] y)"
    refuses(PReluToLeakyRelu(), graph(signature, "y = PRelu(x, k)", k=np.arange(4.0)))
    refuses(PReluToLeakyRelu(), graph(signature, "y = PRelu(x, k)"))
