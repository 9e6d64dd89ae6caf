from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_graphs import Feeds, build, quantize, run

from onnxq.calibrate.calibrator import calibrate
from onnxq.data.samples import open_samples
from onnxq.errors import OutputError
from onnxq.export.compact import export
from onnxq.load.interface import input_specs
from onnxq.normalise.pipeline import normalise
from onnxq.options.recipe import Recipe
from onnxq.plan import Plan, make_plan
from onnxq.student.build import build_student, initial_qparams
from onnxq.verify import kernels
from onnxq.verify.kernels import INTEGER_KERNELS, UNKNOWN, read_kernels

HEAD = '<ir_version: 8, opset_import: ["" : 13]>\n'

CLASSIFIER = (
    HEAD
    + """
net (float[N, 3, 8, 8] x, float[8, 3, 3, 3] w1, float[8] b1, float[8, 8, 3, 3] w2,
  float[8] b2, float[10, 8] w3, float[10] b3) => (float[N, 10] logits)
{
  [first] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
  [relu] r = Relu (a)
  [second] c = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)
  [add] s = Add (r, c)
  [pool] p = GlobalAveragePool (s)
  [flat] f = Flatten (p)
  [head] logits = Gemm <transB = 1> (f, w3, b3)
}
"""
)

FLOAT_BETWEEN = CLASSIFIER.replace("Relu (a)", "Sin (a)")

FLOAT_AFTER = CLASSIFIER.replace(
    "logits = Gemm <transB = 1> (f, w3, b3)",
    "l = Gemm <transB = 1> (f, w3, b3)\n  [end] logits = Softmax <axis = 1> (l)",
)


def model_of(text: str) -> ir.Model:
    """The text's model with random constants in place of all inputs but the first."""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    generator = np.random.default_rng(0)
    for value in list(model.graph.inputs)[1:]:
        array = generator.normal(size=value.shape.numpy()).astype(np.float32) / 4
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model


@pytest.fixture
def exported(tmp_path: Path) -> Callable[[str, Recipe], tuple[ir.Model, Plan]]:
    x = np.random.default_rng(1).normal(size=(16, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)

    def made(text: str, recipe: Recipe) -> tuple[ir.Model, Plan]:
        model = model_of(text)
        plan = make_plan(model, recipe)
        samples = open_samples(tmp_path / "x.npz", input_specs(model), None)
        statistics = calibrate(model, list(plan.tensors), samples, 8, workers=1)
        qparams = initial_qparams(model, plan, statistics, "max")
        return export(build_student(model, plan), qparams), plan

    return made


def test_layers_on_integer_kernels(exported) -> None:
    model, plan = exported(CLASSIFIER, Recipe())
    found = read_kernels(model, plan)
    assert found.layers == {"first": "QLinearConv", "second": "QLinearConv", "head": "QGemm"}
    assert found.integer_layers() == ["first", "second", "head"]
    assert found.float_nodes == []
    assert found.counts["QLinearAdd"] == 1


def test_bytes_of_the_model_give_the_same(exported) -> None:
    model, plan = exported(CLASSIFIER, Recipe())
    data = ir.to_proto(model).SerializeToString()
    assert read_kernels(data, plan) == read_kernels(model, plan)


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
def test_weight_only_layers_run_in_float(exported, granularity: str) -> None:
    recipe = Recipe(activation_bits=None, granularity=granularity)
    model, plan = exported(CLASSIFIER, recipe)
    found = read_kernels(model, plan)
    # Blocked layouts rename the weights, and a Relu is fused into its Conv: still found.
    assert UNKNOWN not in found.layers.values()
    assert not set(found.layers.values()) & INTEGER_KERNELS
    assert found.integer_layers() == []


def test_a_float_node_between_integer_ones_is_named(exported) -> None:
    model, plan = exported(FLOAT_BETWEEN, Recipe())
    found = read_kernels(model, plan)
    assert any("(Sin)" in name for name in found.float_nodes)
    assert found.layers["second"] == "QLinearConv"


def test_nodes_after_the_last_integer_one_are_float_by_plan(exported) -> None:
    model, plan = exported(FLOAT_AFTER, Recipe())
    found = read_kernels(model, plan)
    assert found.counts["Softmax"] == 1
    assert found.float_nodes == []


def test_a_layer_that_is_gone_is_unknown(exported) -> None:
    model, plan = exported(CLASSIFIER, Recipe())
    spec = dataclasses.replace(
        plan.layers["head"], name="other", weight="other.weight", bias=None, output="other.out"
    )
    assert read_kernels(model, Plan({"other": spec}, {})).layers == {"other": UNKNOWN}


SHARED = (
    HEAD
    + """
net (float[N, 3, 8, 8] x, float[8, 3, 3, 3] w1, float[8, 8, 3, 3] w2) => (float[N, 8, 4, 4] y)
{
  [first] a = Conv (x, w1)
  [second] b = Conv <pads = [1, 1, 1, 1]> (a, w2)
  [third] y = Conv (b, w2)
}
"""
)


def test_a_weight_that_an_integer_and_a_float_layer_share(exported) -> None:
    """The float layer is not taken for the integer kernel that reads the same codes."""
    model, plan = exported(SHARED, Recipe())
    assert plan.layers["second"].compute == "integer"
    assert plan.layers["third"].compute == "weight-only"
    found = read_kernels(model, plan)
    assert found.layers["second"] == "QLinearConv"
    assert found.layers["third"] not in INTEGER_KERNELS
    assert found.integer_layers() == ["first", "second"]


def test_a_full_temporary_folder_is_named(monkeypatch):
    def no_room(model, *, optimised_path=None):
        if optimised_path is not None:
            raise RuntimeError("Protobuf serialization failed.")

    monkeypatch.setattr(kernels, "open_session", no_room)
    with pytest.raises(OutputError, match=r"no room for the optimised graph.*TMPDIR"):
        kernels.optimised_nodes(model_of(CLASSIFIER))


def test_products_that_were_brought_to_a_layers_form_run_on_integer_kernels():
    text = """net (float[N, 6, 4] x) => (float[N, 5, 8, 2] y) {
        a = MatMul (left, x) r = Relu (a) e = Einsum <equation = "bij,jhk->bihk"> (r, heads)
        s = Relu (e) y = MatMul (s, one)
    }"""
    weights = {"left": (5, 6), "heads": (4, 8, 3), "one": (1, 3, 2)}
    teacher = normalise(build(text, weights)).model
    data = np.random.default_rng(0).normal(size=(16, 6, 4)).astype(np.float32)
    quantized = quantize(teacher, Feeds([{"x": data}]))
    kernels = read_kernels(quantized.exported, quantized.plan).layers
    assert len(kernels) == 3
    assert set(kernels.values()) <= INTEGER_KERNELS
    found, expected = (run(model, {"x": data})["y"] for model in (quantized.exported, teacher))
    assert np.mean((found - expected) ** 2) < 0.01 * np.mean(expected**2)
