from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import DataError, ModelError
from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.pipeline import compress
from onnxq.verify.compare import compare
from onnxq.verify.evaluate import evaluate

Compressed = Callable[..., Path]


@pytest.fixture(scope="module")
def unlabelled(sample_models: Path) -> Path:
    return sample_models / "digits" / "unlabelled"


@pytest.fixture(scope="module")
def compressed(
    sample_models: Path, unlabelled: Path, tmp_path_factory: pytest.TempPathFactory
) -> Compressed:
    """Makes a compressed sample model, each one once."""
    folder, made = tmp_path_factory.mktemp("compare"), {}

    def make(name: str, **options: object) -> Path:
        key = f"{name} {options}"
        if key not in made:
            made[key] = folder / f"{len(made)}.onnx"
            recipe = Recipe(samples=64, learn=("none",), **options)  # type: ignore[arg-type]
            compress(sample_models / f"{name}.onnx", unlabelled, recipe, out=made[key])
        return made[key]

    return make


def test_layers_are_sorted_by_the_noise_of_their_outputs(
    sample_models: Path, unlabelled: Path, compressed: Compressed
) -> None:
    found = compare(
        sample_models / "digits_resnet.onnx", compressed("digits_resnet"), unlabelled, samples=50
    )
    metrics = [layer.sqnr_db for layer in found.layers]
    assert len(metrics) == 10
    assert None not in metrics
    assert metrics == sorted(metrics, key=float)
    assert found.layers[-1].name == "stem.conv"
    assert {layer.compute for layer in found.layers} == {"integer"}
    assert {layer.num_bits for layer in found.layers} == {8}
    assert min(layer.weight_sqnr_db for layer in found.layers) > 35
    assert (found.samples, found.equalized) == (50, False)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("digits_resnet", {}),
        ("digits_resnet", {"activation_bits": None}),
        ("digits_mobilenet", {"granularity": "per-tensor"}),
    ],
)
def test_extra_outputs_leave_the_model_as_it_is(
    sample_models: Path, unlabelled: Path, compressed: Compressed, name: str, options: dict
) -> None:
    original, file = sample_models / f"{name}.onnx", compressed(name, **options)
    found = compare(original, file, unlabelled, samples=50)
    expected = evaluate(file, unlabelled, original, samples=50).sqnr_db
    assert found.outputs == pytest.approx(expected, abs=0.01)


def test_equalized_channels_are_compared_as_the_original_has_them(
    sample_models: Path, unlabelled: Path, compressed: Compressed
) -> None:
    file = compressed("digits_mobilenet", granularity="per-tensor")
    found = compare(sample_models / "digits_mobilenet.onnx", file, unlabelled, samples=50)
    assert found.equalized
    assert len(found.layers) == 18
    # Not undone, factors of up to a thousand would leave nothing of either.
    assert min(layer.sqnr_db or 0 for layer in found.layers) > 15
    assert min(layer.weight_sqnr_db for layer in found.layers) > 30


def test_weight_only_and_float_layers(
    sample_models: Path, unlabelled: Path, compressed: Compressed
) -> None:
    file = compressed(
        "digits_resnet",
        activation_bits=None,
        exclude=("stem*",),
        layers=(LayerOverride("classifier", weight_bits=7),),
    )
    found = compare(sample_models / "digits_resnet.onnx", file, unlabelled, samples=20)
    rows = {layer.name: layer for layer in found.layers}
    assert (rows["stem.conv"].compute, rows["stem.conv"].num_bits) == ("float", None)
    assert rows["stem.conv"].sqnr_db == rows["stem.conv"].weight_sqnr_db == 200
    assert rows["block0.a.conv"].compute == "weight-only"
    assert rows["block0.a.conv"].num_bits == 8
    assert rows["classifier"].num_bits == 7


def test_fewer_bits_are_more_noise(
    sample_models: Path, unlabelled: Path, compressed: Compressed
) -> None:
    original = sample_models / "digits_resnet.onnx"
    eight, seven = (
        compare(original, compressed("digits_resnet", target=target), unlabelled, samples=20)
        for target in ("cpu", "cpu-avx2")
    )
    assert {layer.num_bits for layer in seven.layers} == {7}
    after = {layer.name: layer.weight_sqnr_db for layer in seven.layers}
    lost = [layer.weight_sqnr_db - after[layer.name] for layer in eight.layers]
    assert min(lost) > 3


def test_the_same_figures_every_time(
    sample_models: Path, unlabelled: Path, compressed: Compressed
) -> None:
    arguments = (sample_models / "digits_mlp.onnx", compressed("digits_mlp"), unlabelled)
    first, second = (compare(*arguments, samples=40) for _ in range(2))
    assert first == second
    assert json.loads(first.to_json())["samples"] == 40


def test_weights_beside_the_file(
    sample_models: Path, unlabelled: Path, compressed: Compressed, tmp_path: Path
) -> None:
    original, file = sample_models / "digits_mlp.onnx", compressed("digits_mlp")
    model = ir.load(file)
    ir.save(model, tmp_path / "b.onnx", external_data="b.data", size_threshold_bytes=0)
    assert (tmp_path / "b.data").stat().st_size > 1000
    found = compare(original, tmp_path / "b.onnx", unlabelled, samples=20)
    assert found == compare(original, file, unlabelled, samples=20)


def test_files_that_do_not_belong_together(
    sample_models: Path, unlabelled: Path, compressed: Compressed
) -> None:
    mlp, resnet = sample_models / "digits_mlp.onnx", sample_models / "digits_resnet.onnx"
    with pytest.raises(ModelError, match="1 of the 3 layers"):
        compare(mlp, compressed("digits_resnet"), unlabelled)
    with pytest.raises(ModelError, match=r"shape \(10, 96\)"):
        compare(resnet, compressed("digits_mobilenet", granularity="per-tensor"), unlabelled)
    with pytest.raises(ModelError, match="was not written by onnxq"):
        compare(compressed("digits_resnet"), resnet, unlabelled)
    with pytest.raises(ModelError, match="already quantized"):
        compare(compressed("digits_resnet"), compressed("digits_resnet"), unlabelled)


def test_samples_of_another_shape(
    sample_models: Path, compressed: Compressed, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", input=np.zeros((4, 3, 8, 8), np.float32))
    with pytest.raises(DataError, match="input"):
        compare(
            sample_models / "digits_resnet.onnx", compressed("digits_resnet"), tmp_path / "x.npz"
        )


MODEL = """
<ir_version: 8, opset_import: ["" : 13]>
net (float[N, 3, 8, 8] x) => (float[N, 4, 4, 4] y, float[N, 4] z)
<float[4, 3, 3, 3] w = {%s}, float[4, 4, 1, 1] v = {%s}>
{
    a = Conv <pads = [1, 1, 1, 1]> (x, w)
    r = Relu (a)
    m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    y = Conv (m, v)
    z = GlobalMaxPool (m)
    z = Flatten (z)
}
"""


def test_a_layer_whose_output_only_moves(tmp_path: Path) -> None:
    """Its tensor exists as codes alone, which the pool reads."""
    rng = np.random.default_rng(0)
    weights = [", ".join(f"{x:.4f}" for x in rng.normal(size=size)) for size in (108, 16)]
    text = (MODEL % tuple(weights)).replace("z = GlobalMaxPool", "g = GlobalMaxPool")
    ir.save(ir.from_onnx_text(text.replace("Flatten (z)", "Flatten (g)")), tmp_path / "a.onnx")
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(32, 3, 8, 8)).astype(np.float32))
    recipe = Recipe(learn=("none",), equalize=False)
    files = tmp_path / "a.onnx", tmp_path / "x.npz"
    compress(*files, recipe, out=tmp_path / "b.onnx", allow_worse=True)
    found = compare(tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "x.npz")
    assert len(found.layers) == 2
    assert min(layer.sqnr_db or 0 for layer in found.layers) > 25
    assert set(found.outputs) == {"y", "z"}
