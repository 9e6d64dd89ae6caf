"""Steps and weights learned at few bits, from file to file."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import compress, run, small_graph

from onnxq import Recipe
from onnxq.learn.train import NO_CLASSIFIER
from onnxq.runtime.session import SessionPool

FEW = Recipe(
    weight_bits=3, activation_bits=4, learn=("steps", "weights"), samples=320, epochs=6
)  # fmt: skip


# Measured: 0.64 of the error, whose square is 0.41.
UNITS = {"outputs": ("error", 0.75), "distillation": ("KL divergence", 0.6)}
WAYS = [(n, "distillation") for n in ("digits_mlp", "digits_resnet")] + [
    ("digits_resnet", "outputs")
]


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def compressed(request, sample_models, tmp_path_factory):
    out = tmp_path_factory.mktemp("few") / "out.onnx"
    name, loss = request.param
    recipe = replace(FEW, loss=loss)
    data = sample_models / "digits" / "unlabelled"
    return compress(sample_models / f"{name}.onnx", data, recipe, out=out)


def test_learning_lowers_the_error_of_held_back_samples(compressed):
    learning = compressed.metrics.learning
    unit, share = UNITS[compressed.recipe.loss]
    assert learning["unit"] == unit
    assert learning["learned_score"] < share * learning["start_score"]
    assert learning["learned_score"] == min(learning["scores"])
    assert compressed.metrics.agreement >= 0.98


def test_the_export_computes_what_the_student_did(compressed):
    assert compressed.metrics.student_agreement == 1.0
    rng = np.random.default_rng(0)
    size = ir.load(compressed.path).graph.inputs[0].shape[1:]
    x = rng.normal(size=(8, *size)).astype(np.float32)
    one = SessionPool(compressed.path).run({"input": x})
    other = SessionPool(compressed.model).run({"input": x})
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


def test_codes_have_the_width_that_was_asked_for(compressed):
    bits = [spec.num_bits for spec in compressed.plan.layers.values()]
    assert set(bits[1:-1]) <= {3} and bits[0] == bits[-1] == 8
    assert compressed.metrics.size_after < 0.4 * compressed.metrics.size_before


@pytest.fixture
def files(tmp_path):
    ir.save(small_graph("residual"), tmp_path / "model.onnx")
    x = np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    return tmp_path / "model.onnx", tmp_path / "x.npz"


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "lr": {"weights": 0.01, "steps": 0.01}},
        {"augment": ("flip", "shift")},
        {"loss": "distillation"},
        {"learn": ("auto",)},
        {"learn": ("steps",), "granularity": "per-tensor", "symmetric": True},
        {"learn": ("weights", "thresholds", "biases"), "lr": {"biases": 0.001}},
        {"activation_bits": None, "lr": {"weights": 0.01, "steps": 0.002}},
    ],
    ids=str,
)
def test_other_ways_learn_and_repeat_to_the_byte(files, options):
    model, data = files
    recipe = replace(FEW, batch_size=4, epochs=8, **options)
    found = [compress(model, data, recipe, out=model.with_name(f"{i}.onnx")) for i in (0, 1)]
    assert found[0].path.read_bytes() == found[1].path.read_bytes()
    learning = found[0].metrics.learning
    assert learning["learned_score"] < learning["start_score"]
    assert found[0].metrics.student_agreement == 1.0
    feeds = {"x": np.random.default_rng(5).normal(size=(8, 3, 8, 8)).astype(np.float32)}
    plain = run(ir.load(found[0].path), feeds)["y"]
    np.testing.assert_allclose(plain, run(found[0].model, feeds)["y"])


def test_a_rate_beyond_all_measure_keeps_the_start_and_is_said(sample_models):
    """Steps end so far apart that an integer kernel refuses them, and numbers overflow."""
    recipe = replace(FEW, samples=200, epochs=3, optimizer="sgd", lr=1e20)
    model = sample_models / "digits_resnet.onnx"
    result = compress(model, sample_models / "digits" / "unlabelled", recipe)
    assert any(note.endswith("try a smaller --lr") for note in result.notes)
    learning = result.metrics.learning
    assert (learning["epoch"], learning["epochs_run"]) == (0, 3)
    assert None in learning["scores"]
    assert json.loads(json.dumps(learning, allow_nan=False)) == learning


def test_a_loss_that_the_model_does_not_have_is_said(files):
    model, data = files
    changed = ir.load(model)
    # Two outputs are no decision.
    changed.graph.outputs.append(next(v for n in changed.graph for v in n.outputs if v.name == "f"))
    ir.save(changed, model)
    result = compress(model, data, replace(FEW, loss="distillation", epochs=1, batch_size=4))
    assert NO_CLASSIFIER in result.notes
