"""What outputs mean, by the nodes that write them."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import build

from onnxq.errors import RecipeError
from onnxq.graph.meanings import Meaning, check_task, find_meanings

GIVEN = {
    "w": (8, 6),
    "c": (4, 3, 3, 3),
    "k": (6, 8, 1),
    "k4": (4, 8, 1),
    "one": np.ones(8, np.float32),
    "last": np.array([-1]),
    "axes": np.array([1]),
}
SIX = "Conv (x, k)"

MATRICES = {
    "y = MatMul (x, w)": "classes",
    "a = MatMul (x, w) y = Softmax (a)": "classes",
    "a = Sin (x) y = Softmax (a)": "classes",
    "e = Exp (x) s = ReduceSum <keepdims = 1> (e, axes) y = Div (e, s)": "classes",
    "a = MatMul (x, w) y = Relu (a)": "classes",
    "y = Sin (x)": "other",
    "a = MatMul (x, w) y = Sin (a)": "other",
    "a = MatMul (x, w) n = ReduceL2 <axes = [1]> (a) y = Div (a, n)": "embeddings",
    "y = LayerNormalization (x, one)": "embeddings",
}
MEAN = "n = LayerNormalization (x, one) y = ReduceMean <axes = [1], keepdims = 0> (n)"
SERIES = {
    "t = Transpose <perm = [0, 2, 1]> (x) a = MatMul (t, w) y = Softmax (a)": Meaning("sequences"),
    "t = Transpose <perm = [0, 2, 1]> (x) y = MatMul (t, w)": Meaning("sequences"),
    "t = Transpose <perm = [2, 0, 1]> (x) y = MatMul (t, w)": Meaning("sequences", axis=1),
    f"a = {SIX} s = Sigmoid (a) b = Conv (x, k4) y = Concat <axis = 1> (b, s)": Meaning(
        "scores", 1, (4, 10)
    ),
    f"a = {SIX} y = Sigmoid (a)": Meaning("other"),
    f"y = {SIX}": Meaning("other"),
}
MAPS = {
    "a = Conv (x, c) y = Sigmoid (a)": "mask",
    "a = Conv (x, c) y = Softmax <axis = 1> (a)": "mask",
    "y = Conv (x, c)": "image",
    "a = Conv (x, c) y = Concat <axis = 1> (a, a)": "other",
}


def _meaning(signature: str, body: str) -> Meaning:
    given = {name: array for name, array in GIVEN.items() if f"{name})" in body}
    model = build(f"net ({signature}) {{ {body} }}", given, opset=17)
    return find_meanings(model.graph)["y"]


@pytest.mark.parametrize("body", MATRICES)
def test_matrices(body):
    assert _meaning("float[N, 8] x) => (float[N, M] y", body).kind == MATRICES[body]


def test_the_mean_of_normalised_vectors_is_an_embedding():
    assert _meaning("float[N, 7, 8] x) => (float[N, 8] y", MEAN).kind == "embeddings"


def test_one_number_is_no_class():
    assert _meaning("float[N, 8] x) => (float[N, 1] y", "y = MatMul (x, w)").kind == "other"


@pytest.mark.parametrize("body", SERIES)
def test_series(body):
    first = "7, N" if "[2, 0, 1]" in body else "N, 7"
    assert _meaning(f"float[N, 8, 7] x) => (float[{first}, M] y", body) == SERIES[body]


@pytest.mark.parametrize("body", MAPS)
def test_maps(body):
    channels = 8 if "Concat" in body else 4
    signature = f"float[N, 3, 9, 9] x) => (float[N, {channels}, 7, 7] y"
    assert _meaning(signature, body).kind == MAPS[body]


def test_integers_are_classes_where_floats_decide_on_them():
    text = "net (float[N, 8] x, int64[N, 3] ids) => (int64[N] y, int64[N, 3] z) {{ {} }}"
    body = "a = MatMul (x, w) y = ArgMax <axis = 1, keepdims = 0> (a) z = Identity (ids)"
    found = find_meanings(build(text.format(body), {"w": (8, 6)}, opset=17).graph)
    assert (found["y"].kind, found["z"].kind) == ("classes", "other")


def test_a_stated_task_goes_before():
    text = "net (float[N, 8] x) => (float[N, M] y, float[N, 8] z) {{ y = {} z = Sin (x) }}"
    graph = build(text.format("MatMul (x, w)"), {"w": (8, 6)}, opset=17).graph
    kinds = {task: find_meanings(graph, task)["y"].kind for task in ("auto", "embeddings", "other")}
    assert kinds == {"auto": "classes", "embeddings": "embeddings", "other": "other"}
    assert find_meanings(graph, "classes")["z"].kind == "classes"
    check_task(graph, "embeddings")
    for task in ("detection", "sequences", "dense"):
        with pytest.raises(RecipeError, match=f"'{task}', and no output of the model fits"):
            check_task(graph, task)
