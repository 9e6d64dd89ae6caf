"""`--bias-centroids` from file to file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnxq import Recipe, compress
from onnxq.errors import RecipeError
from onnxq.report.result import metric_rows
from onnxq.runtime.session import SessionPool
from onnxq.verify.opened import stored_array

FAST = {"samples": 96, "learn": ("none",), "equalize": False}


@pytest.fixture(scope="module", params=[(None, 1), (None, 4), (8, 1)], ids=str)
def compressed(request, sample_models):
    bits, count = request.param
    recipe = Recipe(activation_bits=bits, bias_centroids=count, **FAST)
    return count, compress(
        sample_models / "digits_mobilenet.onnx", sample_models / "digits", recipe
    )


def biases(result) -> dict[str, np.ndarray]:
    """The float bias of each layer, as the exported nodes make it."""
    model = result.model.clone(deep_copy=False)
    nodes = {node.name: node for node in model.graph}
    names = {name: nodes[name].inputs[2] for name, s in result.plan.layers.items() if s.bias}
    model.graph.outputs.extend(dict.fromkeys(v for v in names.values() if v.producer()))
    constants = {n: v.const_value.numpy() for n, v in names.items() if v.const_value is not None}
    size = model.graph.inputs[0].shape[1:]
    found = SessionPool(model).run({"input": np.zeros((1, *size), np.float32)})
    return {n: found[v.name] if v.producer() else constants[n] for n, v in names.items()}


def test_each_layer_has_k_biases(compressed):
    count, result = compressed
    found = biases(result)
    assert len(found) == len(result.plan.layers) > 5
    for name, bias in found.items():
        if result.plan.tensors:
            # On integer kernels each channel rounds the shared bias to a grid of its own.
            grid = stored_array(result.model.graph.node(name).inputs[2].producer().inputs[1])
            assert np.ptp(bias) <= grid.max() * 1.01, name
        else:
            assert np.unique(bias).size <= count, name


def test_the_export_computes_what_the_student_did(compressed):
    metrics = compressed[1].metrics
    assert metrics.student_agreement == 1.0
    assert not metrics.bias_correction


def test_the_cost_is_reported(compressed):
    count, result = compressed
    shared = result.metrics.bias_centroids
    assert shared["count"] == count
    assert shared["shared"] != shared["own"] > 0
    rows = {row[0]: row for row in metric_rows(result.metrics)}
    assert rows["held-out error of shared biases"][3].startswith(f"{count} centroid")
    assert json.loads(result.metrics.to_json())["bias_centroids"] == shared


def test_learned_biases_contradict_it():
    with pytest.raises(RecipeError, match=r"'learn' = 'biases' and 'bias_centroids' = '1'"):
        Recipe(bias_centroids=1, learn=("biases",))


def test_without_the_option_nothing_is_reported(sample_models):
    model = sample_models / "digits_mlp.onnx"
    result = compress(model, sample_models / "digits", Recipe(**FAST))
    assert result.metrics.bias_centroids == {}
