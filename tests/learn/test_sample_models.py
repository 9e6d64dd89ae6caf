"""The committed sample models: what they promise, and that they can be made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.data.preprocess import METADATA_KEY, Preprocess
from onnxq.numerics.quantizers import fake_quant_weight, weight_scale, weight_threshold_max
from tools.architectures import mlp
from tools.digits import PREPROCESS, labelled_and_rest
from tools.training import accuracy, inference_model, train

MODELS = {"digits_mlp": 0, "digits_resnet": 9, "digits_mobilenet": 17}
"""BatchNormalization nodes by model."""


def load(sample_models: Path, name: str) -> ir.Model:
    return ir.load(sample_models / f"{name}.onnx")


@pytest.mark.parametrize("name", MODELS)
def test_form(sample_models, name):
    model = load(sample_models, name)
    assert (model.opset_imports[""], model.ir_version) == (13, 8)
    assert [value.name for value in model.graph.inputs] == ["input"]
    assert [value.name for value in model.graph.outputs] == ["logits"]
    norms = [node for node in model.graph if node.op_type == "BatchNormalization"]
    assert len(norms) == MODELS[name]
    assert Preprocess.from_json(model.metadata_props[METADATA_KEY]) == PREPROCESS


@pytest.mark.parametrize("name", MODELS)
def test_accuracy_on_images_that_were_not_learned_from(sample_models, name):
    labelled, _ = labelled_and_rest()
    assert accuracy(load(sample_models, name), labelled.inputs(), labelled.labels) > 0.97


@pytest.mark.parametrize(("axis", "low", "high"), [(None, 0.0, 0.6), (0, 0.93, 1.0)])
def test_one_scale_per_tensor_makes_the_mobilenet_collapse(sample_models, axis, low, high):
    labelled, _ = labelled_and_rest()
    model = load(sample_models, "digits_mobilenet")
    for conv in [node for node in model.graph if node.op_type == "Conv"]:
        quantize_folded(conv, axis)
    right = accuracy(model, labelled.inputs(), labelled.labels)
    assert low <= right <= high


def quantize_folded(conv: ir.Node, axis: int | None) -> None:
    """Round a convolution's weights as they are once the BatchNormalization is folded in."""
    (norm,) = conv.outputs[0].consumers()
    gamma, variance = (norm.inputs[i].const_value.numpy() for i in (1, 4))
    factor = (gamma / np.sqrt(variance + 1e-5)).reshape(-1, 1, 1, 1)
    folded = conv.inputs[1].const_value.numpy() * factor
    scale = weight_scale(weight_threshold_max(folded, axis), 8)
    rounded = fake_quant_weight(folded, scale, 8, axis)
    conv.inputs[1].const_value = ir.tensor((rounded / factor).astype(np.float32))


def test_images_on_disk_are_the_digits(sample_models):
    labelled = sorted((sample_models / "digits" / "labelled").rglob("*.png"))
    unlabelled = sorted((sample_models / "digits" / "unlabelled").glob("*.png"))
    assert (len(labelled), len(unlabelled)) == (300, 600)
    assert {path.parent.name for path in labelled} == set("0123456789")
    contents = [path.read_bytes() for path in labelled + unlabelled]
    assert len(set(contents[:300]) & set(contents[300:])) == 0


def test_training_is_repeatable():
    _, rest = labelled_and_rest()
    runs = [train(mlp, rest.inputs(), rest.labels, epochs=2, lr=3e-3) for _ in range(2)]
    models = [ir.to_proto(inference_model(mlp, *run, "mlp")).SerializeToString() for run in runs]
    assert models[0] == models[1]
