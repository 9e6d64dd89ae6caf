from __future__ import annotations

from pathlib import Path

import pytest

from onnxq.options.recipe import Recipe
from onnxq.pipeline import compress
from onnxq.verify.kernels import INTEGER_KERNELS


@pytest.mark.parametrize("name", ["digits_resnet", "digits_mobilenet", "digits_mlp"])
def test_every_layer_of_a_sample_model_runs_on_an_integer_kernel(
    sample_models: Path, name: str
) -> None:
    recipe = Recipe(samples=64, learn=("none",), equalize=False)
    metrics = compress(
        sample_models / f"{name}.onnx", sample_models / "digits" / "unlabelled", recipe
    ).metrics
    assert metrics.integer_layers == metrics.layers > 0
    assert set(metrics.kernels.values()) <= INTEGER_KERNELS
    assert metrics.float_nodes == []


def test_every_layer_of_a_weight_only_model_is_found_again(sample_models: Path) -> None:
    recipe = Recipe(samples=64, learn=("none",), activation_bits=None)
    metrics = compress(
        sample_models / "digits_mobilenet.onnx", sample_models / "digits" / "unlabelled", recipe
    ).metrics
    assert metrics.integer_layers == 0
    assert set(metrics.kernels.values()) <= {"Conv", "FusedConv", "Gemm"}
    assert len(metrics.weight_only) == metrics.layers
