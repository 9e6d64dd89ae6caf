"""What is compared where outputs are no plain floats."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import build

from onnxq.train.objective import compared_tensors, find_logits

WEIGHTS = {"w": (4, 3), "anchors": (2, 4), "two": np.array([2]), "none": np.array([0])}
FOUND = "y = MatMul(x, w) n = NonZero(y) t = Transpose(n)"
WEIGHTS |= {"along": np.array([1])}


@pytest.mark.parametrize(
    ("outputs", "body", "expected"),
    [
        ("float[N,3] y, float[N,4] x", "y = MatMul(x, w)", ["y"]),
        ("float[N,3] y, float[2,4] c", "y = MatMul(x, w) c = Relu(anchors)", ["y"]),
        ("float[N,3] y, float[N,0] e", "y = MatMul(x, w) e = Slice(y, none, none, along)", ["y"]),
        ("float[N,3] y, float[2] s", "y = MatMul(x, w) d = Shape(y) s = Cast<to=1>(d)", ["y"]),
        ("int64[N] i", "y = MatMul(x, w) i = ArgMax<axis=1, keepdims=0>(y)", ["y"]),
        (
            "int32[N,1] i",
            "y = MatMul(x, w) s = Softmax(y) d = ArgMax<axis=1>(s) i = Cast<to=6>(d)",
            ["y"],
        ),
        ("int64[N,2] i", "y = MatMul(x, w) v, i = TopK(y, two)", ["y"]),
        ("int64[N] i, float[N,3] y", "y = MatMul(x, w) i = ArgMax<keepdims=0>(y)", ["y"]),
        ("float[M] f", f"{FOUND} f = GatherND(y, t)", ["y"]),
        ("float y", "m = MatMul(x, w) y = ReduceMean<keepdims=0>(m)", ["y"]),
        ("bool[N,3] b", "y = MatMul(x, w) b = IsNaN(y)", []),
        ("float[N,4] x", "y = MatMul(x, w)", []),
    ],
    ids=[
        "input", "computed constant", "empty", "sizes", "places alone", "cast places",
        "places of the largest", "places beside", "chosen", "scalar", "truth values",
        "input alone",
    ],
)  # fmt: skip
def test_what_is_matched(outputs, body, expected):
    used = {name: w for name, w in WEIGHTS.items() if name in body or name in outputs}
    assert find_logits(build(f"g (float[N,4] x) => ({outputs}) {{ {body} }}", used)) == expected


@pytest.mark.parametrize("beside", [True, False])
def test_a_constant_is_not_matched(beside):
    text = "g (float[N,4] x) => (float[N,3] y) { y = MatMul(x, w) c = Relu(anchors) }"
    model = build(text, {"w": (4, 3), "anchors": (2, 4)})
    if not beside:
        model.graph.outputs.clear()
    model.graph.outputs.append(model.graph.initializers["anchors"])
    assert find_logits(model) == (["y"] if beside else [])
    assert compared_tensors(model) == (["y"] if beside else [])


def test_chosen_rows_are_measured_by_what_they_are_chosen_from():
    text = f"g (float[N,4] x) => (float[M] f, int64[N] i) {{ {FOUND} f = GatherND(y, t) "
    model = build(text + "i = ArgMax<axis=1, keepdims=0>(y) }", {"w": (4, 3)})
    assert compared_tensors(model) == ["i", "y"]
