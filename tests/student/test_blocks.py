"""Blocks: every layer in one of them, and block after block gives what the whole gives."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import BODIES, CONV, HEAD, image_graph, images, quantize, run, small_graph

from onnxq.graph.cut import Block, between, cut_blocks
from onnxq.options.recipe import Recipe
from onnxq.plan import make_plan


def blocks_of(model, **more) -> list[Block]:
    layers = list(make_plan(model, Recipe()).layers)
    return cut_blocks(model, layers, [value.name for value in model.graph.inputs], **more)


@pytest.mark.parametrize("name", sorted(BODIES))
def test_block_after_block_gives_what_the_whole_gives(name):
    quantized = quantize(small_graph(name))
    model, feeds = quantized.baked, {"x": images(4)}
    layers = list(quantized.plan.layers)
    for options in ({}, {"most": 1}):
        blocks = cut_blocks(model, layers, ["x"], **options)
        assert [layer for block in blocks for layer in block.layers] == [
            node.name for node in model.graph if node.name in layers
        ]
        values = dict(feeds)
        for block in blocks:
            part = between(model, block.inputs, block.outputs)
            assert {value.name for value in part.graph.inputs} <= set(block.inputs)
            values |= run(part, {k: values[k] for k in block.inputs})
        for key, expected in run(model, feeds).items():
            np.testing.assert_array_equal(values[key], expected)


def test_a_chain_gives_one_layer_each():
    found = blocks_of(small_graph("leaky"))
    assert [block.layers for block in found] == [("Conv_a",), ("Conv_z",), ("Gemm_y",)]
    # What follows a layer belongs to its block, up to the next one.
    assert [block.outputs for block in found] == [("p",), ("f",), ("y",)]


def test_a_residual_block_comes_out_whole():
    body = (
        f"{CONV} r = Relu (a) c = Conv (r, v6, c6) d = Relu (c) e = Conv (d, w6, b6) "
        f"s = Add (r, e) z = Relu (s) {HEAD}"
    )
    model = image_graph(body.replace("w6", "v6"))
    found = [block.layers for block in blocks_of(model)]
    assert found == [("Conv_a",), ("Conv_c", "Conv_e"), ("Gemm_y",)]


def test_a_long_skip_is_cut_where_the_fewest_tensors_cross():
    chain = " ".join(f"h{i} = Conv ({'a' if not i else f'h{i - 1}'}, v6, c6)" for i in range(6))
    model = image_graph(f"{CONV} {chain} z = Add (a, h5) {HEAD}")
    assert len(blocks_of(model)) == 3
    found = blocks_of(model, most=2)
    assert [len(block.layers) for block in found] == [1, 2, 2, 2, 1]
    assert set(found[1].outputs) == {"h1"}
    # The skip goes past the block in between.
    assert "a" in found[3].inputs and "a" not in found[2].inputs


def test_several_outputs():
    model = image_graph(
        f"{CONV} r = Relu (a) c = Conv (r, v6, c6) e = Conv (r, w6, b6)",
        "float[N, 6, h, w] c, float[N, 6, i, j] e",
    )
    found = blocks_of(model)
    assert [block.layers for block in found] == [("Conv_a",), ("Conv_c", "Conv_e")]
    assert set(found[-1].outputs) == {"c", "e"}
