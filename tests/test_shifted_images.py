"""Synthetic images are shifted while weights are learned on them; real ones are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.distillation.distillation import distill
from onnxq.options.recipe import Recipe
from onnxq.pipeline import compress
from onnxq.synthesise import distilled

SHORT = Recipe(samples=48, batch_size=4, epochs=2)
FEW = replace(SHORT, weight_bits=4, activation_bits=4, learn=("weights",))
KINDS = (("auto",), ("shift",), ("none",))


@pytest.fixture
def model(sample_models, monkeypatch):
    monkeypatch.setattr(distilled, "STEPS", 2)
    return sample_models / "digits_resnet.onnx"


def curves(model, recipe, data=None):
    """The held-out errors of learning, by how images are changed."""
    each = (compress(model, data, replace(recipe, augment=kinds)) for kinds in KINDS)
    return [result.metrics.learning["scores"] for result in each]


def test_synthetic_images_are_shifted_where_weights_are_learned(model):
    found, shifted, plain = curves(model, replace(FEW, data_free=True))
    assert found == shifted != plain


def test_synthetic_images_stay_where_ranges_are_learned(model):
    found, shifted, plain = curves(model, replace(FEW, data_free=True, learn=("thresholds",)))
    assert found == plain != shifted


def test_real_images_stay(model, sample_models):
    found, shifted, plain = curves(model, FEW, sample_models / "digits" / "unlabelled")
    assert found == plain != shifted


def test_synthetic_images_are_shifted_in_distillation(model):
    each = (
        distill(model, model, None, replace(SHORT, data_free=True, augment=kinds), init="random")
        for kinds in KINDS
    )
    found, shifted, plain = (result.metrics.scores for result in each)
    assert found == shifted != plain


def test_what_is_no_image_stays(tmp_path):
    graph = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["":13]>
        g (float[N, 64] x) => (float[N, 4] y) { a = MatMul (x, v) b = Relu (a) y = MatMul (b, w) }
        """,
        initializers=[
            ir.tensor(np.random.default_rng(i).normal(size=size).astype(np.float32), name=name)
            for i, (name, size) in enumerate({"v": (64, 8), "w": (8, 4)}.items())
        ],
    )
    ir.save(graph, tmp_path / "m.onnx")
    recipe = replace(FEW, data_free=True, first_last_bits=4)
    result = compress(tmp_path / "m.onnx", recipe=recipe)
    assert len(result.metrics.learning["scores"]) == 2
