"""The exported graph against the student: same numbers, integer kernels, nothing left over."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_graphs import (
    BODIES,
    HEAD,
    Feeds,
    Quantized,
    build,
    differing_codes,
    image_graph,
    images,
    quantize,
    run,
    serialised,
    small_graph,
)

from onnxq.export.compact import export
from onnxq.options.recipe import Recipe
from onnxq.student.student import bake
from onnxq.verify.kernels import INTEGER_KERNELS, read_kernels

_made: dict[str, Quantized] = {}


@pytest.fixture(params=BODIES)
def made(request: pytest.FixtureRequest) -> Quantized:
    name = request.param
    if name not in _made:
        _made[name] = quantize(small_graph(name))
    return _made[name]


def test_the_student_and_the_exported_graph_give_the_same_bits(made):
    feeds = {"x": images(8, seed=5)}
    student, exported = run(made.baked, feeds), run(made.exported, feeds)
    assert student.keys() == exported.keys()
    for name in student:
        np.testing.assert_array_equal(student[name], exported[name])


def test_each_layer_fed_the_same_codes_differs_by_a_code_at_most(made):
    elements, different, largest = differing_codes(made, {"x": images(32, seed=5)})
    assert elements > 0
    assert largest <= 1
    assert different <= elements / 1000


def test_every_layer_runs_on_an_integer_kernel(made):
    kernels = read_kernels(made.exported, made.plan).layers
    for spec in made.plan.layers.values():
        assert (kernels[spec.name] in INTEGER_KERNELS) == (spec.compute == "integer"), spec


def test_the_checker_passes_and_nothing_of_the_student_is_left(made):
    proto = ir.to_proto(made.exported)
    onnx.checker.check_model(proto, full_check=True)
    assert [value.name for value in proto.graph.input] == ["x"]
    assert [value.name for value in proto.graph.output] == ["y"]
    assert not proto.functions
    assert {entry.domain for entry in proto.opset_import} == {""}


def test_no_weight_is_stored_in_float(made):
    floats = [
        value
        for value in made.lowered.graph.initializers.values()
        if value.const_value is not None and value.dtype == ir.DataType.FLOAT
    ]
    for spec in made.plan.layers.values():
        assert made.lowered.graph.initializers[f"{spec.weight}.codes"].dtype == ir.DataType.INT8
        size = made.teacher.graph.initializers[spec.weight].const_value.size
        assert all(v.const_value.size < size for v in floats if v.name.startswith(spec.weight))


def test_one_quantize_node_per_tensor(made):
    quantized = [n.inputs[0] for n in made.exported.graph if n.op_type == "QuantizeLinear"]
    assert len(quantized) == len(made.plan.tensors)
    for value in quantized:
        assert value.producer() is None or value.producer().op_type != "DequantizeLinear"


def test_a_second_export_gives_the_same_bytes_and_leaves_the_student_alone(made):
    before = serialised(made.student.model)
    again = export(made.student, made.qparams)
    assert serialised(again) == serialised(made.exported)
    assert serialised(made.student.model) == before
    assert serialised(bake(made.student, made.qparams)) == serialised(made.baked)


def test_the_teacher_is_not_changed():
    for name in ("residual", "shuffle", "shared", "transposed"):
        teacher = small_graph(name)
        before = serialised(teacher)
        quantize(teacher)
        assert serialised(teacher) == before


def test_the_error_is_that_of_eight_bits(made):
    feeds = {"x": images(64, seed=9)}
    expected, found = run(made.teacher, feeds)["y"], run(made.exported, feeds, optimise=True)["y"]
    noise = np.square(found - expected).sum() / np.square(expected).sum()
    assert noise < 10 ** (-20 / 10)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(granularity="per-tensor"),
        Recipe(symmetric=True),
        Recipe(weight_bits=7),
        Recipe(granularity="per-tensor", symmetric=True, calibration="max"),
    ],
    ids=["per-tensor", "symmetric", "7-bit", "all"],
)
@pytest.mark.parametrize("name", ["residual", "concat", "depth_wise", "transposed", "leaky"])
def test_other_recipes_give_the_same_bits_on_integer_kernels(name, recipe):
    made = quantize(small_graph(name), recipe=recipe)
    feeds = {"x": images(8, seed=5)}
    np.testing.assert_array_equal(run(made.baked, feeds)["y"], run(made.exported, feeds)["y"])
    _, different, largest = differing_codes(made, {"x": images(32, seed=5)})
    assert (different, largest) <= (32, 1)
    kernels = read_kernels(made.exported, made.plan).layers
    assert all(kernels[spec.name] in INTEGER_KERNELS for spec in made.plan.integer_layers())


@pytest.mark.parametrize("name", ["residual", "transposed", "shared"])
def test_float_activations_leave_integers_in_the_file_alone(name):
    made = quantize(small_graph(name), recipe=Recipe(activation_bits=None))
    feeds = {"x": images(8, seed=5)}
    operators = {node.op_type for node in made.exported.graph}
    assert not operators & {"QuantizeLinear", "DequantizeLinear"}
    np.testing.assert_array_equal(run(made.baked, feeds)["y"], run(made.exported, feeds)["y"])
    kernels = read_kernels(made.exported, made.plan).layers
    assert not set(kernels.values()) & INTEGER_KERNELS


def test_padding_is_the_zero_point():
    body = "a = Conv <pads = [1, 1, 1, 1]> (x, wx, bx) p = Pad (a, edges) z = Conv (p, w6, b6) "
    made = quantize(image_graph(body + "h = Relu (z) k = Conv (h, v6, c6)", "float[N, 6, 8, 8] k"))
    pad = made.lowered.graph.node("Pad_p")
    assert pad.inputs[0].dtype == ir.DataType.UINT8
    assert pad.inputs[2].name == "a.zero_point"


def test_shared_weights_are_stored_once():
    made = quantize(small_graph("shared"))
    stored = [name for name in made.lowered.graph.initializers if name.endswith(".codes")]
    assert stored.count("v6.codes") == 1
    assert "c6" not in made.lowered.graph.initializers


@pytest.mark.parametrize("shape", [(6,), (1, 6), (1,), ()])
def test_a_bias_that_spreads_over_the_channels(shape):
    bias = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    text = """net (float[N, 8] x) => (float[N, 3] y) {
        a = Gemm (x, w, b) r = Relu (a) y = Gemm <transB = 1> (r, v)
    }"""
    model = build(text, {"w": (8, 6), "b": bias, "v": (3, 6)})
    x = np.random.default_rng(1).normal(size=(32, 8)).astype(np.float32)
    made = quantize(model, Feeds([{"x": x}]))
    onnx.checker.check_model(ir.to_proto(made.exported), full_check=True)
    np.testing.assert_array_equal(run(made.baked, {"x": x})["y"], run(made.exported, {"x": x})["y"])
    kernels = read_kernels(made.exported, made.plan).layers
    assert set(kernels.values()) <= INTEGER_KERNELS
    expected, found = run(model, {"x": x})["y"], run(made.exported, {"x": x}, optimise=True)["y"]
    np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())


@pytest.mark.parametrize("order", ["head first", "reversed"])
def test_a_weight_shared_with_a_head_still_runs_on_an_integer_kernel(order):
    pair = ["h = Conv (r, v6, b6)", "c = Conv (r, v6, c6)"]
    first, second = pair[::-1] if order == "reversed" else pair
    body = f"a = Conv (x, wx, bx) r = Relu (a) {first} {second} z = Relu (c) {HEAD}"
    made = quantize(image_graph(body, "float[N, 6, 6, 6] h, float[N, 5] y"))
    assert made.plan.layers["Conv_h"].compute == "weight-only"
    assert read_kernels(made.exported, made.plan).layers["Conv_c"] in INTEGER_KERNELS
    feeds = {"x": images(8, seed=5)}
    student, exported = run(made.baked, feeds), run(made.exported, feeds)
    for name in ("h", "y"):
        np.testing.assert_array_equal(student[name], exported[name])


def test_a_float_reader_of_the_input_keeps_the_float_values():
    body = (
        "a = Conv <pads = [1, 1, 1, 1]> (x, wx, bx) r = Relu (a) k = Conv (r, v3) "
        'u = Resize <mode = "nearest"> (x, empty, twice) '
        'v = Resize <mode = "nearest"> (k, empty, twice) y = Add (u, v)'
    )
    weight = np.random.default_rng(0).normal(0, 0.01, (3, 6, 1, 1)).astype(np.float32)
    made = quantize(image_graph(body, "float[N, 3, 16, 16] y", v3=weight))
    feeds = {"x": images(4, seed=2)}
    error = np.abs(run(made.exported, feeds)["y"] - run(made.teacher, feeds)["y"]).max()
    assert error < 1e-3
