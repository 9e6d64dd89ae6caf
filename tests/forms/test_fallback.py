"""Which tensors stay float: those whose codes cost the outputs too much."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import quantization_on, targets_of

from onnxq.calibrate.calibrator import calibrate
from onnxq.forms.fallback import (
    DECISION_LIMIT,
    ERROR_LIMIT,
    Sensitivity,
    error_limit,
    fall_back,
    gate_tensors,
)
from onnxq.normalise.infer_shapes import InferShapes
from onnxq.options.recipe import Recipe
from onnxq.plan import make_plan
from onnxq.progress import Silent
from onnxq.runtime.dataset import Dataset
from onnxq.runtime.session import open_session
from onnxq.student.build import initial_qparams
from onnxq.student.qparams import QParams
from onnxq.train.teacher import Targets


def decibel_model() -> ir.Model:
    """A power spectrum and its logarithm: quiet bins need codes that the loud ones take."""
    rng = np.random.default_rng(0)
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["":13]>
g (float[N,8] x, float[8,6] w, float[6,6] v, float[6,4] u, float[1] tiny) => (float[N,4] y) {
  a = MatMul(x, w)
  p = Mul(a, a)
  b = MatMul(p, v)
  c = Add(b, tiny)
  d = Log(c)
  y = MatMul(d, u)
}"""
    )
    arrays = {
        "w": rng.normal(size=(8, 6)) * 10.0 ** -np.arange(6),
        "v": np.eye(6) + 1e-14,
        "u": rng.normal(size=(6, 4)),
        "tiny": np.array([1e-12]),
    }
    for value in list(model.graph.inputs)[1:]:
        value.const_value = ir.tensor(arrays[str(value.name)].astype(np.float32), name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{number}"
    InferShapes()(model)
    return model


def measured(folder: Path, model: ir.Model) -> Targets:
    x = np.random.default_rng(1).normal(0, 1, (48, 8)).astype(np.float32)
    return targets_of(folder, model, x, 16)


def calibrated(model: ir.Model, train: Dataset) -> QParams:
    plan = make_plan(model, Recipe())
    return initial_qparams(model, plan, calibrate(model, list(plan.tensors), train, 16), "mse")


def sensitivity(folder: Path, model: ir.Model) -> Sensitivity:
    targets, plan = measured(folder, model), make_plan(model, Recipe())
    qparams = calibrated(model, targets.train.parts[0])
    return Sensitivity(model, plan, qparams, targets.objective, targets.held_out)


def test_no_tensor_quantized_is_the_float_model(tmp_path):
    found = sensitivity(tmp_path, decibel_model())
    assert found.error([]) < 1e-6


def test_the_costliest_tensors_come_first(tmp_path):
    found = sensitivity(tmp_path, decibel_model())
    alone = [found.error([name]) for name in found.order()]
    assert alone == sorted(alone, reverse=True)
    assert alone[0] > 10 * max(alone[-1], 1e-6)


@pytest.mark.parametrize("target", [0.3, 0.05, 0.0])
def test_as_few_as_reach_the_target(tmp_path, target):
    found = sensitivity(tmp_path, decibel_model())
    fallback, order = found.to_fall_back(target), found.order()
    assert fallback == set(order[: len(fallback)])
    assert found.error([n for n in order if n not in fallback]) <= max(target, 1e-6)
    if fallback:
        assert found.error(order[len(fallback) - 1 :]) > target


def test_the_gated_model_computes_the_same_with_its_gates_shut():
    model = decibel_model()
    plan = make_plan(model, Recipe())
    before = ir.to_proto(model).SerializeToString()
    gated = open_session(gate_tensors(model, plan), optimise=False)
    x = np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)
    zeros = {v.name: np.float32(0) for v in gated.get_inputs() if v.name.endswith(".gate")}
    limits = {
        v.name: np.float32(-1 if v.name.endswith(".lowest") else 2)
        for v in gated.get_inputs()
        if v.name != "x" and v.name not in zeros
    }
    expected = open_session(model, optimise=False).run(None, {"x": x})
    found = gated.run(None, {"x": x, **{k: np.asarray(v) for k, v in (zeros | limits).items()}})
    np.testing.assert_array_equal(found[0], expected[0])
    assert ir.to_proto(model).SerializeToString() == before


def test_a_model_far_off_keeps_tensors_in_float_and_says_why(tmp_path):
    model = decibel_model()
    # Not (batch, classes): else it would pass for a classifier.
    model.graph.outputs[0].shape = ir.Shape([None, None])
    quantize = quantization_on(measured(tmp_path, model))
    plain = quantize("none", model, Recipe(equalize=False))
    chosen = fall_back(plain, quantize, Silent())
    assert plain.score > ERROR_LIMIT >= chosen.score
    reasons = {spec.reason for spec in chosen.student.plan.layers.values() if spec.reason}
    assert any("8 bits are too few" in reason for reason in reasons)


def test_tensors_of_layers_that_come_back_are_measured_too(tmp_path, monkeypatch):
    """A layer that is no smaller as integers may be smaller once its neighbours stay float."""
    model = decibel_model()
    model.graph.outputs[0].shape = ir.Shape([None, None])
    real = quantization_on(measured(tmp_path, model))

    def quantize(name, model, recipe, known=None, fallback=frozenset(), *, every_layer=False):
        # The size rule leaves a layer out that the recipe does not exclude.
        sized = replace(recipe, exclude=() if fallback or every_layer else ("MatMul_2",))
        return replace(real(name, model, sized, known or {}, fallback), recipe=recipe)

    quantize.has_time = real.has_time
    tried = set()
    monkeypatch.setattr("onnxq.forms.fallback.ERROR_LIMIT", 0.0)
    monkeypatch.setattr(Sensitivity, "error", lambda _, tensors: tried.update(tensors) or 0.0)
    plain = quantize("none", model, Recipe(equalize=False))
    fall_back(plain, quantize, Silent())
    assert "p" in tried - plain.student.plan.tensors.keys()


def test_limits():
    model = decibel_model()
    assert error_limit(model) == DECISION_LIMIT
    model.graph.outputs[0].shape = ir.Shape(["N", 4, 4])
    assert error_limit(model) == ERROR_LIMIT
    model.graph.outputs[0].shape = ir.Shape(["N", 1])
    assert error_limit(model) == ERROR_LIMIT
