"""The training build's kernels and the standard operators, step by step from the same state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from onnxq.engine import Engine
from onnxq.engine.kernels import has_training_kernels
from onnxq.options.recipe import Recipe
from onnxq.pipeline import compress

pytestmark = pytest.mark.skipif(not has_training_kernels(), reason="there is one engine only")

LEARN = ("steps", "weights")
RECIPES = {
    "W8A8": Recipe(samples=96, epochs=1, learn=("thresholds",)),
    "W4A4": Recipe(samples=96, epochs=1, learn=LEARN, weight_bits=4, activation_bits=4),
    "W4A8": Recipe(samples=96, epochs=1, learn=LEARN, weight_bits=4),
}


def check(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Each gradient to 1e-4 of its norm; where that is small, by cancellation, of the whole."""
    assert found.keys() == expected.keys()
    whole = np.sqrt(sum(float(np.square(each).sum()) for each in expected.values()))
    for name, gradient in expected.items():
        apart = np.linalg.norm(found[name] - gradient)
        assert apart <= 1e-4 * np.linalg.norm(gradient) + 1e-6 * whole, name


class Both(Engine):
    """The default engine, whose every step is compared with the other's."""

    compared = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.other = Engine(*arguments, **{**options, "kernels": "onnx"})

    def gradients(self, parameters, shards):
        loss, found = super().gradients(parameters, shards)
        other_loss, others = self.other.gradients(parameters, shards)
        assert loss == pytest.approx(other_loss, rel=1e-5)
        check(others, found)
        Both.compared += 1
        return loss, found

    def each(self, shards):
        found = super().each(shards)
        for (losses, gradients), (other_losses, others) in zip(
            found, self.other.each(shards), strict=True
        ):
            for name, loss in losses.items():
                np.testing.assert_allclose(other_losses[name], loss, rtol=1e-5)
            check(others, gradients)
        Both.compared += 1
        return found


@pytest.mark.parametrize(
    ("name", "bits"),
    [("digits_resnet", "W8A8"), ("digits_resnet", "W4A4"), ("digits_mobilenet", "W4A8")],
)
def test_steps_of_training_are_the_same(sample_models, monkeypatch, name, bits):
    monkeypatch.setattr("onnxq.learn.train.Engine", Both)
    Both.compared = 0
    compress(sample_models / f"{name}.onnx", sample_models / "digits/unlabelled", RECIPES[bits])
    assert Both.compared > 1


@pytest.mark.parametrize("synthesis", ["distilled", "generator"])
def test_steps_of_synthesis_are_the_same(sample_models, monkeypatch, synthesis):
    for module in ("objective", "generated"):
        monkeypatch.setattr(f"onnxq.synthesise.{module}.Engine", Both)
    monkeypatch.setattr("onnxq.synthesise.distilled.STEPS", 3)
    monkeypatch.setattr("onnxq.synthesise.synthesise.STEPS", 3)
    Both.compared = 0
    recipe = Recipe(samples=32, data_free=True, synthesis=synthesis, learn=("none",))
    compress(sample_models / "digits_resnet.onnx", None, recipe)
    assert Both.compared >= 3
