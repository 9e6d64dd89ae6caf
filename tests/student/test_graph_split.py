"""Cutting a graph: prefix and suffix give what the whole gives, whatever the seeds."""

import numpy as np
import pytest
from small_graphs import BODIES, CONV, image_graph, images, run, serialised, small_graph

from onnxq.graph.cut import reach, split


@pytest.mark.parametrize("name", sorted(BODIES))
def test_parts_give_what_the_whole_gives(name):
    model = small_graph(name)
    before = serialised(model)
    feeds = {model.graph.inputs[0].name: images(4)}
    expected = run(model, feeds)
    for node in model.graph:
        parts = split(model, [node.name])
        values = dict(feeds)
        if parts.prefix is not None:
            values |= run(parts.prefix, feeds)
            assert {v.name for v in parts.prefix.graph.outputs} == set(parts.cut)
        taken = {v.name for v in parts.suffix.graph.inputs}
        found = run(parts.suffix, {k: v for k, v in values.items() if k in taken})
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value)
    assert serialised(model) == before


def test_the_suffix_holds_what_the_seed_reaches_and_no_more():
    model = small_graph("residual")
    for node in model.graph:
        reached = reach(model.graph, [node.name])
        assert [n.name for n in split(model, [node.name]).suffix.graph] == [
            n.name for n in model.graph if n.name in reached
        ]


def test_a_seed_may_be_an_input():
    model = small_graph("residual")
    parts = split(model, [model.graph.inputs[0].name])
    assert parts.prefix is None and parts.cut == ()
    assert len(list(parts.suffix.graph)) == len(list(model.graph))


def test_sub_graphs_read_across_the_cut():
    head = "float[N, 6]"
    model = image_graph(
        f"{CONV} g = GlobalAveragePool (a) f = Flatten (g) "
        f"i = If <then_branch = t () => ({head} u) {{ u = Relu (f) }}, "
        f"else_branch = e () => ({head} v) {{ v = Neg (f) }}> (yes) "
        "y = Gemm <transB = 1> (i, wh, bh)",
        yes=np.array(True),
    )
    feeds = {"x": images(4)}
    expected = run(model, feeds)["y"]
    for node in model.graph:
        parts = split(model, [node.name])
        values = dict(feeds)
        if parts.prefix is not None:
            values |= run(parts.prefix, feeds)
        taken = {v.name for v in parts.suffix.graph.inputs}
        found = run(parts.suffix, {k: v for k, v in values.items() if k in taken})["y"]
        np.testing.assert_array_equal(found, expected)
