"""Codebooks in the exported graph: the student's bits, and nothing left at run time."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_graphs import Quantized, images, quantize, run, serialised, small_graph

from onnxq.export.lookup import add_lookup
from onnxq.graph.editor import add_initializer
from onnxq.numerics.codebook import Codebook
from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.plan import planner
from onnxq.verify.kernels import optimised_nodes, read_kernels

COUNTS = (2, 3, 4, 5, 6, 7, 16, 17, 32, 256)
SETTINGS = {
    "int8 per channel": {},
    "int8 per tensor": {"granularity": "per-tensor"},
    "float per channel": {"activation_bits": None},
    "float per tensor": {"activation_bits": None, "granularity": "per-tensor"},
}


@pytest.fixture
def always(monkeypatch) -> None:
    """A codebook for every layer, small ones too."""
    monkeypatch.setattr(planner, "codebook_refusal", lambda *args, **more: "")


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("count", COUNTS)
def test_same_bits_as_the_student_and_same_kernels_as_codes(count, setting):
    plain = quantize(small_graph("residual"), recipe=Recipe(**SETTINGS[setting]))
    made = quantize(small_graph("residual"), recipe=Recipe(codebook=count, **SETTINGS[setting]))
    feeds = {"x": images(8, seed=5)}
    np.testing.assert_array_equal(run(made.baked, feeds)["y"], run(made.exported, feeds)["y"])
    assert any(node.op_type == "Gather" for node in made.exported.graph)
    found, expected = (read_kernels(m.exported, m.plan) for m in (made, plain))
    assert found.counts == expected.counts
    assert found.layers == expected.layers


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["shared", "transposed", "depth_wise", "excite"])
def test_other_graphs(name, setting):
    made = quantize(small_graph(name), recipe=Recipe(codebook=6, **SETTINGS[setting]))
    feeds = {"x": images(8, seed=5)}
    np.testing.assert_array_equal(run(made.baked, feeds)["y"], run(made.exported, feeds)["y"])
    assert not {node.op_type for node in optimised_nodes(made.exported)} & {"Gather", "BitShift"}
    proto = ir.to_proto(made.exported)
    onnx.checker.check_model(proto, full_check=True)
    assert [value.name for value in proto.graph.input] == ["x"]
    assert {entry.domain for entry in proto.opset_import} == {""}


@pytest.mark.usefixtures("always")
def test_no_weight_is_stored_twice_and_the_bytes_are_repeatable():
    first, second = (made_with(17) for _ in range(2))
    assert serialised(first.exported) == serialised(second.exported)
    names = first.lowered.graph.initializers
    for spec in first.plan.layers.values():
        assert f"{spec.weight}.centroids" in names
        assert spec.weight not in names and f"{spec.weight}.codes" not in names


def made_with(count: int) -> Quantized:
    return quantize(small_graph("residual"), recipe=Recipe(codebook=count))


@pytest.mark.usefixtures("always")
def test_single_layers_have_their_own_count():
    recipe = Recipe(layers=(LayerOverride("Conv", codebook=5),))
    made = quantize(small_graph("residual"), recipe=recipe)
    assert {s.codebook for s in made.plan.layers.values() if s.op_type == "Conv"} == {5}
    assert made.plan.layers["Gemm_y"].codebook is None
    feeds = {"x": images(8, seed=5)}
    np.testing.assert_array_equal(run(made.baked, feeds)["y"], run(made.exported, feeds)["y"])


@pytest.mark.usefixtures("always")
def test_more_centroids_are_closer_to_the_original():
    feeds = {"x": images(32, seed=7)}
    expected = run(small_graph("residual"), feeds)["y"]
    errors = [np.square(run(made_with(k).baked, feeds)["y"] - expected).sum() for k in (2, 6, 32)]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("size", [1, 3, 8, 15, 40, 41])
@pytest.mark.parametrize("count", [1, *COUNTS, 9, 12, 100, 255])
def test_every_count_and_size_is_looked_up(count, size):
    rng = np.random.default_rng(count)
    table = np.sort(rng.normal(0, 1, count)).astype(np.float32)
    indices = rng.integers(0, count, (size, 1)).astype(np.uint8)
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 13]> net (float[N, 1] x) => (float[N, 1] y) '
        "{ y = Add (x, w) }",
        initializers=[ir.tensor(np.zeros((size, 1), np.float32), name="w")],
    )
    graph = model.graph
    add_initializer(graph, "other", np.zeros(1, np.float32))
    found = add_lookup(graph, "w", Codebook(table, indices, np.float32(1)))
    graph.initializers["w"].replace_all_uses_with(found)
    del graph.initializers["w"]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    x = np.zeros((size, 1), np.float32)
    for optimise in (False, True):
        np.testing.assert_array_equal(run(model, {"x": x}, optimise=optimise)["y"], table[indices])
    assert [node.op_type for node in optimised_nodes(model)] == ["Add"]
