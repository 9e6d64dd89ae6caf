"""Codes of 2 to 7 bits: packed in the file, the student's bits, the kernels of 8 bits."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import (
    BODIES,
    codes_by_tensor,
    differing_codes,
    images,
    quantize,
    run,
    serialised,
    small_graph,
)

from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.plan import planner
from onnxq.report.contents import stored_weight
from onnxq.verify.kernels import INTEGER_KERNELS, optimised_nodes, read_kernels

SETTINGS = {
    "integer per channel": {},
    "integer per tensor": {"granularity": "per-tensor"},
    "float per channel": {"activation_bits": None},
    "float per tensor": {"activation_bits": None, "granularity": "per-tensor"},
}


@pytest.fixture
def always(monkeypatch) -> None:
    """Packed codes for every layer, small ones too."""
    monkeypatch.setattr(planner, "packing_refusal", lambda *args: "")


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("num_bits", range(2, 8))
def test_packed_codes_give_the_bits_of_the_student_on_the_kernels_of_eight(num_bits, setting):
    plain = quantize(small_graph("residual"), recipe=Recipe(**SETTINGS[setting]))
    recipe = Recipe(weight_bits=num_bits, first_last_bits=num_bits, **SETTINGS[setting])
    made = quantize(small_graph("residual"), recipe=recipe)
    feeds = {"x": images(8, seed=5)}
    np.testing.assert_array_equal(run(made.baked, feeds)["y"], run(made.exported, feeds)["y"])
    found, expected = (read_kernels(m.exported, m.plan) for m in (made, plain))
    assert found.counts == expected.counts
    assert found.layers == expected.layers
    packed = made.plan.layers.values()
    assert all(spec.packed and spec.num_bits == num_bits for spec in packed)
    names = made.lowered.graph.initializers
    for spec in packed:
        assert spec.weight not in names and f"{spec.weight}.codes" not in names
        stored = stored_weight(made.exported.graph.node(spec.name).inputs[1])
        assert (stored.num_bits, stored.codebook) == (num_bits, None)
        assert stored.parameters == spec.parameters


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["shared", "transposed", "depth_wise", "excite"])
def test_other_graphs(name, setting):
    recipe = Recipe(weight_bits=3, first_last_bits=3, **SETTINGS[setting])
    made = quantize(small_graph(name), recipe=recipe)
    feeds = {"x": images(8, seed=5)}
    np.testing.assert_array_equal(run(made.baked, feeds)["y"], run(made.exported, feeds)["y"])
    if made.plan.tensors:
        _, different, largest = differing_codes(made, {"x": images(32, seed=5)})
        assert (different, largest) <= (32, 1)
    assert not {node.op_type for node in optimised_nodes(made.exported)} & {"Gather", "BitShift"}


@pytest.mark.parametrize("num_bits", range(2, 8))
def test_unpacked_codes_of_small_layers(num_bits):
    recipe = Recipe(weight_bits=num_bits, first_last_bits=num_bits)
    made = quantize(small_graph("residual"), recipe=recipe)
    assert not any(spec.packed for spec in made.plan.layers.values())
    assert not any(node.op_type == "Gather" for node in made.exported.graph)
    feeds = {"x": images(8, seed=5)}
    np.testing.assert_array_equal(run(made.baked, feeds)["y"], run(made.exported, feeds)["y"])


@pytest.mark.usefixtures("always")
def test_single_layers_have_their_own_width_and_the_bytes_are_repeatable():
    recipe = Recipe(layers=(LayerOverride("Conv", weight_bits=4),))
    first, second = (quantize(small_graph("residual"), recipe=recipe) for _ in range(2))
    assert {s.num_bits for s in first.plan.layers.values() if s.op_type == "Conv"} == {4}
    assert first.plan.layers["Gemm_y"].num_bits == 8
    assert serialised(first.exported) == serialised(second.exported)


def test_a_codebook_beside_low_bits_keeps_fine_centroids(monkeypatch):
    monkeypatch.setattr(planner, "codebook_refusal", lambda *args, **more: "")
    made = quantize(
        small_graph("residual"), recipe=Recipe(codebook=16, weight_bits=2, first_last_bits=2)
    )
    tables = {k: v for k, v in made.lowered.graph.initializers.items() if "centroids" in k}
    assert {np.abs(v.const_value.numpy()).max() for v in tables.values()} == {63}
    assert len(tables) == len({spec.weight for spec in made.plan.layers.values()})


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("num_bits", [2, 4])
@pytest.mark.parametrize("name", BODIES)
def test_few_codes_of_activations_give_the_bits_of_the_student_on_the_same_kernels(
    name, num_bits, symmetric
):
    plain = quantize(small_graph(name), recipe=Recipe(symmetric=symmetric))
    every = (LayerOverride("*", activation_bits=num_bits),)
    recipe = Recipe(activation_bits=num_bits, symmetric=symmetric, layers=every)
    made = quantize(small_graph(name), recipe=recipe)
    feeds = {"x": images(32, seed=5)}
    np.testing.assert_array_equal(run(made.baked, feeds)["y"], run(made.exported, feeds)["y"])
    elements, different, largest = differing_codes(made, feeds)
    assert largest <= 1 and different <= max(1, elements / 1000)
    codes = codes_by_tensor(made.lowered, made.plan, feeds)
    few = [n for n, spec in made.plan.tensors.items() if spec.num_bits == num_bits]
    assert few and all(codes[f"{n}.codes"].max() < 2**num_bits for n in few)
    found, expected = (read_kernels(m.exported, m.plan) for m in (made, plain))
    assert (found.layers, found.float_nodes) == (expected.layers, expected.float_nodes)
    integer = {name: count for name, count in found.counts.items() if name in INTEGER_KERNELS}
    assert integer == {n: c for n, c in expected.counts.items() if n in INTEGER_KERNELS}
