"""The written form: smaller than the lowered graph, and the same bits on the same kernels."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_graphs import (
    BODIES,
    Quantized,
    image_graph,
    images,
    quantize,
    run,
    serialised,
    small_graph,
)

from onnxq.export.compact import compact, export
from onnxq.options.recipe import Recipe
from onnxq.verify.kernels import read_kernels
from onnxq.verify.opened import find_tensors

RECIPES = {
    "8 bits": Recipe(),
    "4 and 4 bits": Recipe(weight_bits=4, activation_bits=4),
    "weight-only": Recipe(activation_bits=None),
}
_made: dict[tuple[str, str], tuple[Quantized, ir.Model]] = {}


@pytest.fixture(params=[(name, recipe) for name in BODIES for recipe in RECIPES], ids="-".join)
def forms(request: pytest.FixtureRequest) -> tuple[Quantized, ir.Model]:
    """A graph in all stages, and its written form."""
    name, recipe = request.param
    if request.param not in _made:
        made = quantize(small_graph(name), recipe=RECIPES[recipe])
        _made[request.param] = made, made.exported
    return _made[request.param]


def test_the_same_bits_on_the_same_kernels(forms):
    made, written = forms
    feeds = {"x": images(8, seed=5)}
    for optimise in (False, True):
        expected, found = (run(m, feeds, optimise=optimise) for m in (made.lowered, written))
        assert expected.keys() == found.keys()
        for name in expected:
            np.testing.assert_array_equal(expected[name], found[name])
    expected, found = (read_kernels(m, made.plan) for m in (made.lowered, written))
    if "Loop" in expected.counts:
        # Around a Loop the number of Transposes depends on the order of the nodes.
        for kernels in (expected, found):
            kernels.counts.pop("Transpose", None)
    assert (found.layers, found.counts) == (expected.layers, expected.counts)
    # A file is read without the types of its values.
    assert read_kernels(serialised(written), made.plan).layers == expected.layers


def test_what_is_looked_for_keeps_its_name(forms):
    made, written = forms
    proto = ir.to_proto(written)
    onnx.checker.check_model(proto, full_check=True)
    assert [value.name for value in proto.graph.input] == ["x"]
    assert [v.name for v in proto.graph.output] == [v.name for v in made.teacher.graph.outputs]
    nodes = {str(node.name): node.op_type for node in written.graph if node.name}
    assert nodes.items() <= {str(n.name): n.op_type for n in made.teacher.graph}.items()
    assert made.plan.layers.keys() <= nodes.keys()
    assert made.plan.tensors.keys() - {"x"} <= find_tensors(written.graph).keys()
    expected = find_tensors(made.lowered.graph).keys() & find_tensors(made.teacher.graph).keys()
    gone = expected - find_tensors(written.graph).keys()
    folded = {node.inputs[0].name for node in made.teacher.graph if node.op_type in FOLDED}
    assert gone <= folded


FOLDED = ("Relu", "Clip")
"""What a layer's output is read by where the range of what follows is quantized in its place."""


def test_everything_else_is_short(forms):
    made, written = forms
    proto = ir.to_proto(written)
    names = {name for node in proto.graph.node for name in (*node.input, *node.output)}
    assert not proto.graph.value_info and not [n for n in names if "." in n and ".codes" not in n]
    assert len(proto.SerializeToString()) < 0.8 * len(serialised(made.lowered))
    arrays = [
        (t.data_type, tuple(t.dims), t.raw_data)
        for t in proto.graph.initializer
        if len(t.raw_data) < 1024
    ]
    assert len(arrays) == len(set(arrays))


def test_a_second_run_changes_nothing(forms):
    made, written = forms
    before = serialised(written)
    again = ir.from_proto(onnx.load_from_string(before))
    compact(again, made.student.model.graph)
    assert serialised(again) == before
    assert serialised(export(made.student, made.qparams)) == before


def test_names_of_the_original_are_not_taken():
    body = (
        "b = Conv <pads = [1, 1, 1, 1]> (x, wx, bx) a = Relu (b) c = Conv (a, w6, b6) "
        "d = Relu (c) e = Add (d, aa)"
    )
    constant = np.ones((1, 6, 1, 1), np.float32)
    made = quantize(image_graph(body, "float[N, 6, 6, 6] e", aa=constant))
    written = made.exported
    feeds = {"x": images(8, seed=5)}
    np.testing.assert_array_equal(run(made.baked, feeds)["e"], run(written, feeds)["e"])
    values = [value.name for node in written.graph for value in node.outputs]
    assert len(values) == len(set(values)) and {"a", "d"} <= set(values)
    assert "aa" in written.graph.initializers
