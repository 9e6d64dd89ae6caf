"""Learned rounding of the sample models: at few bits it beats learned thresholds by far."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxq.forms.quantization import Quantization
from onnxq.forms.variant import choose_form
from onnxq.learn.learn import learn
from onnxq.options.recipe import Recipe
from onnxq.pipeline import read, run_original, split
from onnxq.progress import Silent
from onnxq.train.budget import Budget
from onnxq.train.checkpoint import Job


# Measured: 0.43 and 0.74 of the held-out error under learned thresholds.
@pytest.mark.parametrize(
    ("name", "bits", "share"), [("digits_resnet", 3, 0.6), ("digits_mobilenet", 4, 0.85)]
)
def test_rounding_beats_nearest_under_learned_thresholds(
    tmp_path, sample_models, name, bits, share
):
    recipe = Recipe(weight_bits=bits, samples=256, fallback=False)
    data = Path(sample_models / "digits" / "unlabelled")
    job = Job(sample_models / f"{name}.onnx", data, recipe, Silent())
    original, samples = read(job, [])
    slices = split(original, samples, recipe)
    targets = run_original(job, original, slices, tmp_path)
    quantize = Quantization(slices[0], targets, 16, smaller=True)
    variant = choose_form(original.model, recipe, quantize)
    budget = Budget(epochs=2)
    thresholds, rounding = (
        learn(variant, targets.train, (each,), budget) for each in ("thresholds", "rounding")
    )
    assert rounding.improved
    assert rounding.score < share * thresholds.score <= share * variant.score
