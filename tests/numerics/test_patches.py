"""Rows of inputs times rows of weights are what the operator computes."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import build, run

from onnxq.options.recipe import Recipe
from onnxq.plan import make_plan
from onnxq.student.weights import layer_geometry

CASES = {
    "plain": ("", (4, 3, 3, 3), (2, 3, 7, 6)),
    "strides and pads": ("<strides = [2, 1], pads = [1, 0, 2, 1]>", (4, 3, 3, 2), (2, 3, 7, 6)),
    "dilations": ("<dilations = [2, 1], pads = [1, 1, 1, 1]>", (4, 3, 3, 3), (2, 3, 8, 6)),
    "groups": ("<group = 3, pads = [1, 1, 1, 1]>", (6, 2, 3, 3), (2, 6, 5, 5)),
    "depth-wise": ("<group = 6, strides = [2, 2]>", (6, 1, 3, 3), (2, 6, 5, 5)),
    "one axis": ("<pads = [1, 1]>", (4, 3, 3), (2, 3, 9)),
    "three axes": ("<pads = [1, 0, 0, 0, 1, 0]>", (4, 2, 2, 2, 2), (1, 2, 4, 3, 3)),
}


def check(text: str, weight: tuple[int, ...], x_shape: tuple[int, ...], rank: int) -> None:
    dims = ", ".join(map(str, x_shape))
    model = build(f"net (float[{dims}] x) => (float y) {{ {text} }}", {"w": weight})
    spec = next(iter(make_plan(model, Recipe()).layers.values()))
    geometry = layer_geometry(model.graph.node(spec.name), spec, weight)
    x = np.random.default_rng(0).normal(size=x_shape).astype(np.float32)
    y = run(model, {"x": x})["y"]
    chosen = np.array([0, 3, geometry.places(y.shape) - 1])
    array = model.graph.initializers["w"].const_value.numpy()
    rows = geometry.to_rows(array)
    found = np.einsum("grk,ngk->ngr", rows, geometry.inputs(x, chosen))
    np.testing.assert_allclose(found, geometry.outputs(y, chosen), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(geometry.from_rows(rows), array)
    assert geometry.places(y.shape) * geometry.shape[geometry.axis] == y.size


@pytest.mark.parametrize("case", CASES)
def test_convolutions(case):
    attributes, weight, x = CASES[case]
    check(f"y = Conv {attributes} (x, w)", weight, x, len(x))


@pytest.mark.parametrize(
    ("text", "weight", "x"),
    [
        ("y = Gemm (x, w)", (5, 3), (6, 5)),
        ("y = Gemm <transB = 1> (x, w)", (3, 5), (6, 5)),
        ("y = MatMul (x, w)", (5, 3), (2, 4, 5)),
    ],
)
def test_matrices(text, weight, x):
    check(text, weight, x, len(x))
