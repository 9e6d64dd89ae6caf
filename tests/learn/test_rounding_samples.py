"""Learned rounding of the sample models: at few bits it beats learned thresholds by far."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxq.intake import Intake
from onnxq.learn.learn import learn
from onnxq.options.recipe import Recipe
from onnxq.progress import Silent
from onnxq.run import Run
from onnxq.train.budget import Budget


# Measured: 0.43 and 0.74 of the held-out error under learned thresholds.
@pytest.mark.parametrize(
    ("name", "bits", "share"), [("digits_resnet", 3, 0.6), ("digits_mobilenet", 4, 0.85)]
)
def test_rounding_beats_nearest_under_learned_thresholds(
    tmp_path, sample_models, name, bits, share
):
    recipe = Recipe(weight_bits=bits, samples=256, fallback=False)
    intake = Intake(sample_models / f"{name}.onnx", recipe, Silent())
    intake.load(Path(sample_models / "digits" / "unlabelled"), None)
    run = Run(intake)
    variant = run.prepare(tmp_path)
    budget = Budget(epochs=2)
    thresholds, rounding = (
        learn(variant, run.targets.train, (each,), budget) for each in ("thresholds", "rounding")
    )
    assert rounding.improved
    assert rounding.score < share * thresholds.score <= share * variant.score
