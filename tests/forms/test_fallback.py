"""Which tensors stay float: those whose codes cost the outputs too much."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import quantization_on, targets_of

from onnxq.forms.fallback import (
    DECISION_LIMIT,
    ERROR_LIMIT,
    TRAINABLE,
    Footprint,
    Sensitivity,
    after_learning,
    by_gain,
    error_limit,
    fall_back,
    fewest,
    footprint,
    gate_tensors,
    learning_share,
    slack,
)
from onnxq.forms.variant import Variant
from onnxq.normalise.infer_shapes import InferShapes
from onnxq.numerics.quantizers import Range
from onnxq.options.recipe import Recipe
from onnxq.plan import make_plan
from onnxq.progress import Silent
from onnxq.runtime.session import open_session
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


def variant_of(folder: Path, model: ir.Model) -> Variant:
    return quantization_on(measured(folder, model))("plain", model, Recipe(equalize=False))


def test_no_tensor_quantized_is_the_float_model(tmp_path):
    assert Sensitivity(variant_of(tmp_path, decibel_model())).error([]) < 1e-6


def test_the_error_of_weights_is_what_tensors_do_not_explain(tmp_path):
    recipe = Recipe(equalize=False, weight_bits=2, first_last_bits=2)
    variant = quantization_on(measured(tmp_path, decibel_model()))("", decibel_model(), recipe)
    found = Sensitivity(variant)
    parts = found.error(variant.student.plan.tensors), found.weights_error(variant)
    assert np.hypot(*parts) == pytest.approx(variant.score, rel=0.2)
    assert parts[1] > 0.1


def test_a_footprint_is_what_leaves_the_integers(tmp_path):
    variant = variant_of(tmp_path, decibel_model())
    found = footprint(variant, variant.student.plan, "p")
    assert "p" in found.tensors
    assert "MatMul_2" in found.layers
    assert "MatMul_5" not in found.layers


LAYERS = {"a": {"1"}, "b": {"1", "2"}, "c": {"3", "4", "5"}, "d": set()}
FOOTPRINTS = {name: Footprint(frozenset({name}), frozenset(ls)) for name, ls in LAYERS.items()}


def test_most_error_per_layer_goes_first():
    errors = {"a": 0.5, "b": 0.6, "c": 0.7, "d": 0.1}
    # 0.25 / 2, then b, whose layer 1 is gone: 0.36 / 2, 0.49 / 4, 0.01.
    assert by_gain(errors, FOOTPRINTS) == ["a", "b", "c", "d"]
    assert by_gain({**errors, "c": 0.9}, FOOTPRINTS)[0] == "c"


def test_tensors_that_leave_with_another_count_with_it():
    together = {**FOOTPRINTS, "c": Footprint(frozenset({"c", "a"}), frozenset({"3"}))}
    assert by_gain({"a": 0.5, "b": 0.1, "c": 0.4, "d": 0.1}, together) == ["c", "d", "b"]


@pytest.mark.parametrize(
    ("target", "expected"), [(9.0, ""), (3.0, "a"), (2.5, "ab"), (1.0, "abc"), (0.0, "abcd")]
)
def test_as_few_as_reach_the_target(target, expected):
    errors = {"a": 16, "b": 4, "c": 4, "d": 1}

    def error(names):
        return sum(errors[name] for name in names) ** 0.5

    assert fewest("abcd", FOOTPRINTS, error, target) == set(expected)


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
    monkeypatch.setattr(Sensitivity, "error", lambda _, tensors: tried.update(tensors) or 1.0)
    plain = quantize("none", model, Recipe(equalize=False))
    fall_back(plain, quantize, Silent())
    assert "p" in tried - plain.student.plan.tensors.keys()


def test_what_was_trained_is_kept_by_tensors_that_stay_integers(tmp_path):
    model = decibel_model()
    model.graph.outputs[0].shape = ir.Shape([None, None])
    quantize = quantization_on(measured(tmp_path, model))
    plain = quantize("none", model, Recipe(equalize=False))
    wider = {n: Range(r.lowest, 1.01 * r.width) for n, r in plain.qparams.ranges.items()}
    trained = replace(plain, qparams=plain.qparams.with_ranges(wider), tuned=True)
    chosen = fall_back(trained, quantize, Silent())
    kept = chosen.student.plan.tensors.keys()
    assert chosen.score <= ERROR_LIMIT
    assert chosen.recipe == trained.recipe
    assert 0 < len(kept) < len(wider)
    assert {n: chosen.qparams.ranges[n] for n in kept} == {n: wider[n] for n in kept}
    assert fall_back(trained, quantize, Silent(), factor=1e6) is trained


def test_limits():
    model = decibel_model()
    assert error_limit(model) == DECISION_LIMIT
    model.graph.outputs[0].shape = ir.Shape(["N", 4, 4])
    assert error_limit(model) == ERROR_LIMIT
    model.graph.outputs[0].shape = ir.Shape(["N", 1])
    assert error_limit(model) == ERROR_LIMIT


def test_tensors_are_kept_in_float_after_training_where_there_is_any(tmp_path):
    assert slack(Recipe()) == TRAINABLE > 1
    assert slack(Recipe(learn=("none",))) == slack(Recipe(max_size=0.2)) == 1
    model = decibel_model()
    model.graph.outputs[0].shape = ir.Shape([None, None])
    quantize = quantization_on(measured(tmp_path, model))
    far = quantize("plain", model, Recipe(equalize=False))
    assert learning_share(far) < 1
    assert after_learning(far, quantize, Silent()).score < far.score
    untrained = replace(far, recipe=replace(far.recipe, learn=("none",)))
    assert learning_share(untrained) == 1
    assert after_learning(untrained, quantize, Silent()) is untrained
