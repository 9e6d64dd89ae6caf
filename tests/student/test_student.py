"""The student graph and the numbers that it is fed."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import (
    BODIES,
    HEAD,
    Feeds,
    build,
    image_graph,
    images,
    quantize,
    run,
    serialised,
    small_graph,
)

from onnxq.calibrate.calibrator import TensorStatistics, calibrate
from onnxq.graph.cut import between
from onnxq.numerics.clip import calibrated_range
from onnxq.numerics.quantizers import BIAS_LIMIT, SMALLEST_WIDTH
from onnxq.options.recipe import Recipe
from onnxq.plan import TensorSpec, make_plan
from onnxq.student import student as student_module
from onnxq.student.build import build_student
from onnxq.student.qparams import (
    QParams,
    bias_name,
    range_feeds,
    range_inputs,
)
from onnxq.student.student import bake_between
from onnxq.verify.opened import stored_array


def spec(kind: str, num_bits: int = 8, calibration: str = "max") -> TensorSpec:
    return TensorSpec("t", kind != "positive", kind == "symmetric", num_bits, calibration)


@pytest.mark.parametrize("name", BODIES)
def test_the_student_is_a_valid_graph_over_the_teachers_names(name):
    teacher = small_graph(name)
    before = serialised(teacher)
    plan = make_plan(teacher, Recipe())
    student = build_student(teacher, plan).model
    onnx.checker.check_model(ir.to_proto(student))
    assert serialised(teacher) == before
    names = {value.name for node in student.graph for value in node.outputs}
    written = {value.name for node in teacher.graph for value in node.outputs}
    assert {tensor for tensor in plan.tensors if tensor in written} <= names
    assert [value.name for value in student.graph.outputs] == ["y"]
    assert student.graph.inputs[0].name == "x"
    calls = [node for node in student.graph if node.domain == "onnxq"]
    assert len(calls) == len(plan.tensors)


@pytest.mark.parametrize("name", ["residual", "transposed", "shared", "split"])
def test_every_parameter_input_is_fed_in_its_shape(name):
    made = quantize(small_graph(name))
    feeds = made.student.feeds(made.qparams)
    inputs = {value.name: value for value in made.student.model.graph.inputs}
    assert set(feeds) == set(inputs) - {"x"}
    for key, array in feeds.items():
        assert array.dtype == np.float32
        assert array.shape == tuple(inputs[key].shape or ())


@pytest.mark.parametrize(
    ("inputs", "output", "layers"),
    [([], "r", ["Conv_a"]), (["r"], "c", ["Conv_c"]), (["r", "c"], "y", ["Gemm_y"])],
)
def test_a_part_is_baked_with_its_own_numbers_alone(monkeypatch, inputs, output, layers):
    made = quantize(small_graph("residual"))
    asked: list[str] = []
    real = student_module.fake_weight

    def fake(spec, *args):
        asked.append(spec.name)
        return real(spec, *args)

    monkeypatch.setattr(student_module, "fake_weight", fake)
    part = bake_between(made.student, made.qparams, inputs, [output])
    assert asked == layers
    onnx.checker.check_model(ir.to_proto(part))
    feeds = {"x": images(2)}
    if inputs:
        feeds = run(between(made.baked, [], inputs), feeds)
    expected = run(between(made.baked, inputs, [output]), feeds)[output]
    np.testing.assert_array_equal(run(part, feeds)[output], expected)


def test_no_weight_is_left_as_a_constant():
    made = quantize(small_graph("residual"))
    weights = {layer.weight for layer in made.plan.layers.values()}
    assert not weights & set(made.student.model.graph.initializers)


def test_a_float_reader_of_a_float_tensor_reads_it_as_it_was():
    made = quantize(small_graph("float_side"))
    graph = made.student.model.graph
    # Tanh reads codes: integers wrote `a`. The convolution reads a quantized copy of `r`.
    assert graph.node("Tanh_t").inputs[0].producer().domain == "onnxq"
    assert graph.node("Conv_c").inputs[0].name == "r.quantized"


def test_an_output_that_integers_write_keeps_its_name():
    body = f"a = Conv <pads = [1, 1, 1, 1]> (x, wx, bx) z = Relu (a) {HEAD}"
    made = quantize(image_graph(body, "float[N, 6, 8, 8] z, float[N, 5] y"))
    feeds = {"x": images(4)}
    student, exported = run(made.baked, feeds), run(made.exported, feeds)
    assert set(student) == {"z", "y"}
    np.testing.assert_array_equal(student["z"], exported["z"])
    width = made.qparams.ranges["z"][1]
    assert len(np.unique(student["z"])) <= 256
    assert student["z"].max() <= width * 1.001


def test_a_perceptron_computes_what_integers_compute():
    """Codes, int32 sums and one scale per channel in numpy, against the student's graph."""
    model = build(
        "net (float[N, 8] x) => (float[N, 3] y)"
        "{ a = Gemm (x, w1, b1) r = Relu (a) y = Gemm <transB = 1> (r, w2, b2) }",
        {"w1": (8, 16), "b1": (16,), "w2": (3, 16), "b2": (3,)},
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)).astype(np.float32)
    made = quantize(model, Feeds([{"x": x}]))
    numbers, plan = made.qparams, made.plan
    scales = made.student.weight_scales(numbers)

    def layer(codes, zero, scale, name):
        weight, bias, grid = numbers.weights[name], numbers.biases, scales[name].astype(float)
        layer_name = "Gemm_a" if name == "w1" else "Gemm_y"
        signed = np.rint(weight / (grid if name == "w1" else grid[:, None]))
        signed = np.clip(signed if name == "w1" else signed.T, -127, 127).astype(np.int64)
        offsets = np.rint(bias[layer_name] / (scale * grid)).astype(np.int64)
        return ((codes - zero) @ signed + offsets) * (scale * grid)

    def quantized(values, tensor):
        scale, zero = plan.tensors[tensor].quantizer.scale_and_zero_point(numbers.ranges[tensor], 8)
        codes = np.clip(np.rint(values / float(scale)) + zero, 0, 255).astype(np.int64)
        return codes, zero, float(scale)

    hidden = layer(*quantized(x, "x"), "w1")
    y = layer(*quantized(hidden, "r"), "w2")
    found = run(made.baked, {"x": x})["y"]
    # A sum right between two codes may round to either in float32 and float64.
    assert np.mean(np.abs(found - y) > 1e-5) < 0.02


@given(
    st.sampled_from(["asymmetric", "positive", "symmetric"]),
    st.integers(2, 8),
    st.floats(2.0**-20, 100, width=32),
    st.floats(0, 1, width=32),
)
def test_range_inputs_and_qparams_agree(kind, num_bits, width, share):
    tensor = spec(kind, num_bits)
    values = tensor.quantizer.range(-share * width, width)
    feeds = range_feeds([tensor], QParams({tensor.name: values}, {}, {}, {}))
    assert tuple(feeds) == range_inputs(tensor)
    assert all(value.dtype == np.float32 for value in feeds.values())
    scale, zero_point = tensor.quantizer.scale_and_zero_point(values, num_bits)
    assert scale > 0
    if kind == "asymmetric":
        np.testing.assert_allclose(scale * (2**num_bits - 1), width, rtol=1e-6)
        assert abs(zero_point * scale - share * width) <= scale * 0.501
    elif kind == "positive":
        assert zero_point == 0
        np.testing.assert_allclose(scale * (2**num_bits - 1), width, rtol=1e-6)
    else:
        assert zero_point == 2 ** (num_bits - 1)
        np.testing.assert_allclose(scale * (2 ** (num_bits - 1) - 1), width / 2, rtol=1e-6)


def statistics(values: np.ndarray) -> TensorStatistics:
    found = TensorStatistics()
    found.update(float(values.min()), float(values.max()), values)
    return found


@settings(max_examples=40)
@given(
    st.sampled_from(["asymmetric", "positive", "symmetric"]),
    st.sampled_from(["max", "mse", "aciq", "kl", "percentile"]),
    st.floats(2.0**-10, 1000, width=32),
    st.floats(-3, 3, width=32),
)
def test_starting_ranges_hold_zero_and_stay_within_what_was_seen(kind, method, size, shift):
    values = np.random.default_rng(0).normal(shift, 1, 2000).astype(np.float32) * np.float32(size)
    if kind == "positive":
        values = np.maximum(values, 0)
    lowest, width = calibrated_range(statistics(values), method, 8, kind)
    assert width > 0
    assert lowest <= 0 <= lowest + width
    largest = np.abs(values).max() * 1.001 + SMALLEST_WIDTH
    assert -lowest <= largest
    assert lowest + width <= largest
    if kind == "symmetric":
        assert lowest == pytest.approx(-width / 2)
    if kind == "positive":
        assert lowest == 0


def test_a_tensor_that_is_always_zero_has_a_range():
    found = calibrated_range(statistics(np.zeros(10, np.float32)), "max", 8, "asymmetric")
    assert found == (0.0, SMALLEST_WIDTH)


def test_a_huge_bias_raises_its_weights_scale_and_stays_in_int32():
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 1, (6, 3, 3, 3)).astype(np.float32)
    weight[1] *= 1e-12
    weight[2] = 0
    bias = np.array([1, 50, 50, -50, 0, 3], np.float32)
    body = "a = Conv <pads = [1, 1, 1, 1]> (x, wl, bl) z = Relu (a) " + HEAD
    made = quantize(image_graph(body, wl=weight, bl=bias))
    codes = made.lowered.graph.initializers["Conv_a.bias.codes"].const_value.numpy()
    grid = stored_array(made.lowered.graph.node("Conv_a").inputs[2].producer().inputs[1])
    assert codes.dtype == np.int32
    assert np.abs(codes.astype(np.int64)).max() <= BIAS_LIMIT * 1.001
    assert np.all(np.abs(codes * grid.astype(float) - bias) <= grid * 0.501)
    assert np.abs(codes[1:3]).min() > BIAS_LIMIT / 2, "the scales of these channels were raised"
    feeds = {"x": images(8, seed=1)}
    expected, found = run(made.teacher, feeds)["y"], run(made.exported, feeds, optimise=True)["y"]
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
def test_the_bias_grid_is_the_product_of_both_scales(granularity):
    made = quantize(small_graph("signed"), recipe=Recipe(granularity=granularity))
    values = {
        str(value.name): stored_array(value)
        for node in made.lowered.graph
        for value in node.inputs
        if value.name.endswith(".scale")
    }
    for layer in made.plan.integer_layers():
        source = made.student.sources[layer.name]
        product = values[f"{source}.scale"] * values[f"{layer.weight}.scale"]
        np.testing.assert_array_equal(values[f"{bias_name(layer)}.scale"], product)


def test_the_calibration_reads_every_planned_tensor():
    teacher = small_graph("excite")
    plan = make_plan(teacher, Recipe())
    found = calibrate(teacher, list(plan.tensors), Feeds([{"x": images()}]), 16)
    assert list(found) == list(plan.tensors)
    for name, tensor in plan.tensors.items():
        assert tensor.signed or found[name].minimum >= 0
