"""Each rule of fusion on a small graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import BODIES, HEAD, build, image_graph, serialised, small_graph

from onnxq.errors import RecipeError
from onnxq.normalise.pipeline import normalise
from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.plan import Plan, make_plan


def plan_of(name: str, **options) -> Plan:
    return make_plan(small_graph(name), Recipe(**options))


def reasons(plan: Plan) -> dict[str, str]:
    return {spec.name: spec.reason for spec in plan.layers.values() if spec.reason}


@pytest.mark.parametrize("name", BODIES)
def test_planning_changes_nothing_and_is_repeatable(name):
    model = small_graph(name)
    before = serialised(model)
    assert make_plan(model, Recipe()) == make_plan(model, Recipe())
    assert serialised(model) == before


@pytest.mark.parametrize(("name", "node"), [("relu", "Relu_z"), ("clip", "Clip_z")])
def test_an_activation_after_a_convolution_is_folded_into_its_range(name, node):
    plan = plan_of(name)
    assert "a" not in plan.tensors
    assert plan.tensors["z"].folded == node
    assert not plan.tensors["z"].signed
    assert plan.tensors["z"].kind == "positive"


def test_the_activation_of_a_residual_sum_is_folded():
    plan = plan_of("residual")
    assert plan.tensors["z"].folded == "Relu_z"
    assert "s" not in plan.tensors
    assert "Add_s" in plan.integer_nodes


@pytest.mark.parametrize("body", ["z = Clip (a, low, six)", "z = Clip (a, zero)", "z = Tanh (a)"])
def test_only_a_clip_from_zero_is_folded(body):
    model = image_graph(
        f"a = Conv <pads = [1, 1, 1, 1]> (x, wx, bx) {body} {HEAD}",
        low=np.array(-1, np.float32),
    )
    folded = make_plan(model, Recipe()).tensors["a" if "zero" not in body else "z"].folded
    assert folded == ("Clip_z" if "zero" in body else None)


def test_an_activation_whose_input_is_read_elsewhere_is_not_folded():
    plan = plan_of("float_side")
    assert plan.tensors["a"].folded is None
    assert plan.tensors["a"].signed
    assert plan.tensors["r"].folded is None
    assert not plan.tensors["r"].integer


def test_an_activation_whose_input_is_an_output_is_not_folded():
    body = f"a = Conv <pads = [1, 1, 1, 1]> (x, wx, bx) z = Relu (a) {HEAD}"
    plan = make_plan(image_graph(body, "float[N, 6, 8, 8] a, float[N, 5] y"), Recipe())
    assert plan.tensors["a"].folded is None


def test_a_tensor_read_twice_is_quantized_once():
    plan = plan_of("read_twice")
    assert list(plan.tensors) == ["x", "r", "c", "z", "g"]


@pytest.mark.parametrize("name", ["pad", "pad_signed", "slice", "shuffle", "nearest", "max_pool"])
def test_data_movement_shares_the_scale_of_what_it_moves(name):
    plan = plan_of(name)
    assert "p" not in plan.tensors
    assert plan.data_movement


def test_interpolation_is_no_data_movement():
    plan = plan_of("linear")
    assert "Resize_p" not in plan.data_movement
    assert not plan.tensors["p"].integer


@pytest.mark.parametrize(
    "resize",
    [
        'Resize <mode = "cubic"> (a, empty, twice)',
        'Resize <coordinate_transformation_mode = "tf_crop_and_resize"> (a, box, twice)',
    ],
)
def test_resizing_that_makes_new_values_is_no_data_movement(resize):
    body = f"a = Conv (x, wx, bx) p = {resize} z = Conv (p, v6) {HEAD}"
    box = np.array([0, 0, 0, 0, 1, 1, 2, 2], np.float32)
    plan = make_plan(image_graph(body, box=box), Recipe())
    assert "Resize_p" not in plan.data_movement


def test_a_pad_with_another_value_is_no_data_movement():
    body = f"a = Conv (x, wx, bx) p = Pad (a, edges, six) z = Conv (p, v6) {HEAD}"
    plan = make_plan(image_graph(body), Recipe())
    assert "Pad_p" not in plan.data_movement
    assert "p" in plan.tensors


def test_a_move_that_only_float_nodes_read_moves_floats():
    body = (
        "a = Conv (x, wy, by) r = Relu (a) k = Conv (r, v6, c6) "
        'u = Resize <mode = "nearest"> (x, empty, twice) y = Concat <axis = 2> (k, u)'
    )
    plan = make_plan(image_graph(body, "float[N, C, H, W] y"), Recipe())
    assert "Resize_u" not in plan.data_movement
    assert not plan.tensors["x"].integer


@pytest.mark.parametrize(
    ("name", "node", "inputs"), [("concat", "Concat_p", "rb"), ("residual", "Add_s", "rc")]
)
def test_joining_nodes_read_tensors_with_scales_of_their_own(name, node, inputs):
    plan = plan_of(name)
    assert node in plan.integer_nodes
    assert all(tensor in plan.tensors for tensor in inputs)


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("leaky", {"LeakyRelu_p"}),
        ("excite", {"GlobalAveragePool_m", "Sigmoid_s", "Mul_p"}),
        ("average_pool", {"AveragePool_p"}),
        ("hard_swish", set()),
        ("transposed", set()),
    ],
)
def test_which_nodes_between_layers_run_in_integers(name, nodes):
    assert plan_of(name).integer_nodes == nodes | {"GlobalAveragePool_g"}


def test_the_logits_of_a_gemm_stay_float():
    plan = plan_of("relu")
    assert plan.layers["Gemm_y"].compute == "integer"
    assert "y" not in plan.tensors


def test_a_gemm_between_gemms_is_quantized_behind():
    model = build(
        "net (float[N, 8] x) => (float[N, 3] y)"
        "{ a = Gemm (x, w1, b1) r = Relu (a) y = Gemm (r, w2, b2) }",
        {"w1": (8, 16), "b1": (16,), "w2": (16, 3), "b2": (3,)},
    )
    plan = make_plan(model, Recipe())
    assert list(plan.tensors) == ["x", "r"]
    assert plan.tensors["r"].folded == "Relu_r"
    assert [spec.axis for spec in plan.layers.values()] == [1, 1]


def test_a_head_convolution_is_weight_only_with_the_reason():
    model = image_graph(
        "a = Conv (x, wx, bx) r = Relu (a) y = Conv (r, v6, c6)", "float[N,6,6,6] y"
    )
    plan = make_plan(model, Recipe())
    assert reasons(plan) == {
        "Conv_y": "no other layer reads its result, which therefore stays float"
    }
    assert plan.layers["Conv_a"].compute == "integer"
    # Nobody reads codes of `r` but the convolution in front of it must write codes.
    assert set(plan.tensors) == {"x", "r"}


def test_a_transposed_convolution_is_weight_only_with_the_reason():
    plan = plan_of("transposed")
    assert reasons(plan) == {"ConvTranspose_t": "ConvTranspose has no integer kernel"}
    assert plan.layers["ConvTranspose_t"].channel_axis == 1


def test_a_product_with_a_stack_of_matrices_is_weight_only():
    model = build(
        "net (float[2, 3, 4] x) => (float[2, 3, 5] y) { y = MatMul (x, w) }", {"w": (2, 4, 5)}
    )
    assert "3 dimensions" in reasons(make_plan(model, Recipe()))["MatMul_y"]


@pytest.mark.parametrize("pattern", ["Conv_z", "Conv_*", "Conv"])
def test_an_excluded_layer_is_left_alone_with_the_reason(pattern):
    plan = plan_of("signed", exclude=(pattern,))
    assert plan.left_alone["Conv_z"] == "it is excluded by the recipe"
    assert "Conv_z" not in plan.layers
    assert ("Conv_a" in plan.layers) == (pattern == "Conv_z")


def test_what_an_excluded_layer_reads_and_writes_stays_float():
    plan = plan_of("read_twice", exclude=("Conv_a", "Conv_c"))
    assert "Add_z" not in plan.integer_nodes
    assert list(plan.tensors) == ["g"]


@pytest.mark.parametrize("pattern", ["Conv_zz", "conv_z", "Konv"])
def test_an_unknown_pattern_names_the_nearest(pattern):
    with pytest.raises(RecipeError, match=f"'{pattern}' matches no layer .* nearest name is 'Conv"):
        plan_of("signed", exclude=(pattern,))


def test_an_override_reaches_its_layer_alone():
    override = LayerOverride("Conv_z", weight_bits=7, granularity="per-tensor", calibration="max")
    plan = plan_of("signed", layers=(override,))
    assert (plan.layers["Conv_z"].num_bits, plan.layers["Conv_z"].axis) == (7, None)
    assert (plan.layers["Conv_a"].num_bits, plan.layers["Conv_a"].axis) == (8, 0)
    assert plan.tensors["z"].calibration == "max"
    assert plan.tensors["a"].calibration == "mse"


def test_symmetric_activations_are_those_with_a_sign():
    plan = plan_of("residual", symmetric=True)
    kinds = {name: spec.kind for name, spec in plan.tensors.items()}
    assert kinds["x"] == kinds["c"] == "symmetric"
    assert kinds["r"] == kinds["z"] == "positive"


def test_the_avx2_target_has_seven_bit_weights():
    plan = plan_of("relu", target="cpu-avx2")
    assert {spec.num_bits for spec in plan.layers.values()} == {7}


@pytest.mark.parametrize("activation_bits", [8, None])
@pytest.mark.parametrize(
    ("bits", "stated", "ends"),
    [(8, None, 8), (6, None, 6), (5, None, 8), (2, None, 8), (8, 4, 4), (3, 5, 5), (3, 3, 3)],
)
def test_the_first_and_the_last_layer_have_their_own_bits(bits, stated, ends, activation_bits):
    more = {"weight_bits": bits, "first_last_bits": stated, "activation_bits": activation_bits}
    layers = plan_of("signed", **more).layers
    assert [spec.num_bits for spec in layers.values()] == [ends, bits, ends]
    override = (LayerOverride("Conv_a", weight_bits=7),)
    layers = plan_of("signed", layers=override, **more).layers
    assert [spec.num_bits for spec in layers.values()] == [7, bits, ends]
    # One that stays float hands its bits to no other.
    layers = plan_of("signed", exclude=("Conv_a",), **more).layers
    assert [spec.num_bits for spec in layers.values()] == [bits, ends]


@pytest.mark.parametrize(
    ("bits", "stated", "ends"), [(4, None, 8), (7, None, 7), (4, 5, 5), (4, 2, 4)]
)
def test_what_the_first_and_the_last_layer_read_has_their_bits(bits, stated, ends):
    tensors = plan_of("signed", activation_bits=bits, first_last_bits=stated).tensors
    assert {n: spec.num_bits for n, spec in tensors.items()} == {
        "x": ends, "a": bits, "z": 8, "g": ends
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "few"),
    [
        ("residual", {"r"}),  # What is added has 8 bits, and so has the sum that is pooled.
        ("concat", {"p"}),  # What is joined too.
        ("pad", {"r"}),  # A move has its source's codes, which the layer after it multiplies.
        ("excite", {"m", "p"}),  # The gate and what it gates.
    ],
)
def test_few_bits_are_for_what_a_layer_multiplies(name, few):
    tensors = plan_of(name, activation_bits=4).tensors
    assert {n for n, spec in tensors.items() if spec.num_bits == 4} == few
    assert {spec.num_bits for n, spec in tensors.items() if n not in few} == {8}
    override = (LayerOverride("*", activation_bits=3),)
    stated = plan_of(name, activation_bits=4, layers=override).tensors
    assert {spec.num_bits for n, spec in stated.items() if n != "x"} == {3}


def test_tensors_that_few_bits_are_too_few_for_get_eight_and_stay_in_integers():
    graph = small_graph("excite")
    plan = make_plan(graph, Recipe(activation_bits=4), fallback=frozenset("m"))
    assert {n: plan.tensors[n].num_bits for n in "mp"} == {"m": 8, "p": 4}
    assert len(plan.integer_layers()) == len(plan.layers)


def test_float_activations_leave_no_tensor_quantized():
    plan = plan_of("residual", activation_bits=None)
    assert not plan.tensors
    assert all(spec.compute == "weight-only" for spec in plan.layers.values())
    assert all("--activation-bits none" in spec.reason for spec in plan.layers.values())


def test_a_tensor_with_nan_keeps_the_layers_around_it_float():
    plan = make_plan(small_graph("residual"), Recipe(), infinite=frozenset({"c"}))
    assert "c" not in plan.tensors
    assert "NaN" in plan.layers["Conv_c"].reason
    assert "Add_s" not in plan.integer_nodes
    assert plan.layers["Conv_a"].compute == "integer"


def test_a_moved_tensor_with_nan_keeps_its_reader_float():
    plan = make_plan(small_graph("pad"), Recipe(), infinite=frozenset({"r"}))
    assert "NaN" in plan.layers["Conv_z"].reason
    assert "r" not in plan.tensors


def test_layers_inside_a_subgraph_are_left_alone_with_the_reason():
    text = """net (float[N, 4] x, bool c) => (float[N, 4] y) {
        a = MatMul (x, w1)
        y = If (c) <then_branch = then () => (float[N, 4] t) { t = MatMul (a, w2) },
                    else_branch = other () => (float[N, 4] e) { e = Identity (a) }>
    }"""
    model = build(text, {"w1": (4, 4), "w2": (4, 4)})
    plan = make_plan(model, Recipe())
    (inside,) = (name for name, why in plan.left_alone.items() if "sub-graph" in why)
    assert list(plan.layers) == ["MatMul_a"]
    assert inside not in plan.layers


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("y = Gemm <alpha = 0.5> (x, w)", "alpha"),
        ("y = Gemm <transA = 1> (x, w)", "transposes its input"),
        ("y = Conv (x4, w4, k)", "bias is not constant"),
        ("y = Gemm (x, w, m)", "bias is not one number per output channel"),
        ("y = Gemm (x, w, n)", "bias is not one number per output channel"),
        ("y = Conv (x4, v)", "weights are not constant"),
        ('y = Conv <auto_pad = "SAME_UPPER"> (x4, w4)', "auto_pad"),
    ],
)
def test_a_form_without_an_integer_kernel_is_left_alone_with_the_reason(text, reason):
    signature = "float[4, 4] x, float[1, 4, 4, 4] x4, float[4] k, float[4, 4, 1, 1] v"
    constants = {"w": (4, 4), "w4": (4, 4, 1, 1), "m": (4, 4), "n": (4, 1)}
    used = {
        name: shape for name, shape in constants.items() if f"{name})" in text or f"{name}," in text
    }
    model = build(f"net ({signature}) => (float[A, B] y) {{ {text} }}", used)
    plan = make_plan(model, Recipe())
    assert not plan.layers
    (found,) = plan.left_alone.values()
    assert reason in found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("y = MatMul (w, x)", ""),
        ("u = Add (x, w) y = MatMul (w, u)", "other nodes, which are no layers"),
        ('y = Einsum <equation = "ij,jk->ik"> (x, w)', ""),
        ('y = Einsum <equation = "ij,ij->ij"> (x, w)', "multiplies elements"),
        ('y = Einsum <equation = "ij,ij->ij"> (x, x)', None),
        ("y = Gemm <alpha = 0.5> (x, w)", ""),
        ("u = Gemm <alpha = 0.5> (x, w) y = Sub (u, w)", ""),
    ],
)
def test_every_product_with_constant_weights_is_a_layer_or_listed(text, reason):
    used = {"w": (4, 4)} if "w)" in text or "(w" in text else {}
    model = build(f"net (float[N, 4, 4] z, float[4, 4] x) => (float[A, B] y) {{ {text} }}", used)
    plan = make_plan(normalise(model).model, Recipe())
    assert len(plan.layers) == (reason == "")
    assert bool(plan.left_alone) == bool(reason)
    assert all(reason in found for found in plan.left_alone.values())


def test_a_product_in_a_subgraph_without_weights_is_not_listed():
    text = """net (float[4, 4] x, bool c) => (float[N, 4] y) {
        a = MatMul (x, w1)
        y = If (c) <then_branch = then () => (float[N, 4] t) { t = MatMul (a, x) },
                    else_branch = other () => (float[N, 4] e) {
                        v = Transpose (w1) e = MatMul (a, v) }>
    }"""
    plan = make_plan(build(text, {"w1": (4, 4)}), Recipe())
    assert len(plan.left_alone) == 1


def test_a_recurrent_layer_is_left_alone_with_the_reason():
    model = build(
        "net (float[5, 2, 3] x) => (float[5, 1, 2, 4] y){ y = LSTM <hidden_size = 4> (x, w, r) }",
        {"w": (1, 16, 3), "r": (1, 16, 4)},
    )
    assert "no integer kernel" in make_plan(model, Recipe()).left_alone["LSTM_y"]


def test_a_product_of_two_activations_is_not_a_layer():
    model = build("net (float[2, 4] a, float[4, 3] b) => (float[2, 3] y) { y = MatMul (a, b) }", {})
    plan = make_plan(model, Recipe())
    assert not plan.layers
    assert not plan.left_alone


def test_layers_that_share_a_weight_both_have_a_spec():
    plan = plan_of("shared")
    assert plan.layers["Conv_c"].weight == plan.layers["Conv_d"].weight == "v6"
    assert plan.layers["Conv_c"].bias != plan.layers["Conv_d"].bias


def test_layers_that_share_a_weight_agree_on_its_codes():
    model = build(
        "net (float[N, 4] x) => (float[N, 4] y) { a = Gemm (x, w) y = Gemm <transB = 1> (a, w) }",
        {"w": (4, 4)},
    )
    override = LayerOverride("Gemm_a", weight_bits=7)
    plan = make_plan(model, Recipe(layers=(override,)))
    assert {(spec.axis, spec.num_bits) for spec in plan.layers.values()} == {(None, 8)}
    assert [spec.channel_axis for spec in plan.layers.values()] == [1, 0]


def test_specs_are_in_graph_order():
    model = small_graph("excite")
    order = [node.name for node in model.graph]
    layers = list(make_plan(model, Recipe()).layers)
    assert layers == sorted(layers, key=order.index)
    assert isinstance(model, ir.Model)


def test_a_spared_tensor_keeps_the_layers_around_it_float():
    model = small_graph("residual")
    plan = make_plan(model, Recipe())
    fallback = make_plan(model, Recipe(), fallback=frozenset(["r"]))
    assert "r" in plan.tensors and "r" not in fallback.tensors
    float_layers = {s.name for s in fallback.layers.values() if "8 bits are too few" in s.reason}
    around = {
        str(node.name)
        for node in model.graph
        if node.op_type == "Conv"
        and {"a", "r"} & {v.name for v in (*node.inputs, *node.outputs) if v}
    }
    assert float_layers == around


def test_a_depthwise_transposed_convolution_has_a_scale_per_group():
    body = "a = Conv (x, wx, bx) z = ConvTranspose <group = 6, strides = [2, 2]> (a, dw, db)"
    plan = make_plan(image_graph(f"{body} {HEAD}"), Recipe())
    [spec] = [s for s in plan.layers.values() if s.op_type == "ConvTranspose"]
    assert spec.axis == 0
