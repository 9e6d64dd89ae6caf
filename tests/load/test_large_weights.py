"""Models whose weights sessions read from files: the same results, and nothing left behind."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxq import Recipe, compress
from onnxq.errors import ModelError, OutputError
from onnxq.load.model import load_model
from onnxq.runtime.session import SessionPool, open_session
from onnxq.runtime.weight_files import WeightFiles


@pytest.fixture
def all_large(monkeypatch, tmp_path):
    """Every model is large, and its files go to a folder of the test."""
    for name in (
        "onnxq.runtime.weight_files.LARGE",
        "onnxq.load.tensors.LARGE",
        "onnxq.load.read.LARGE",
    ):
        monkeypatch.setattr(name, 1)
    for module in ("onnxq.runtime.weight_files", "onnxq.load.tensors", "onnxq.normalise.clean"):
        monkeypatch.setattr(f"{module}.SMALLEST", 256)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def external(model: Path, folder: Path) -> Path:
    path = folder / model.name
    proto = onnx.load(model)
    onnx.save(proto, path, save_as_external_data=True, location="w.data", size_threshold=0)
    return path


def outputs(model: ir.Model | Path, x: np.ndarray) -> np.ndarray:
    return open_session(model).run(None, {"input": x})[0]


@pytest.mark.parametrize("outside", [False, True])
def test_the_same_model_is_loaded(all_large, sample_models, tmp_path, outside):
    path = sample_models / "digits_resnet.onnx"
    x = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)
    model = load_model(external(path, tmp_path) if outside else path)
    weights = [v.const_value for v in model.graph.initializers.values()]
    assert any(isinstance(each, ir.ExternalTensor) for each in weights) == outside
    np.testing.assert_array_equal(outputs(model, x), outputs(path, x))


@pytest.mark.parametrize("outside", [False, True])
def test_a_run_gives_the_same_file(all_large, sample_models, tmp_path, monkeypatch, outside):
    path, data = sample_models / "digits_resnet.onnx", sample_models / "digits"
    source = external(path, tmp_path) if outside else path
    recipe = Recipe(samples=64, activation_bits=None, learn=("none",), exclude=("block2*",))
    large = compress(source, data, recipe, out=tmp_path / "large.onnx")
    assert large.metrics.agreement == 1.0
    monkeypatch.undo()
    small = compress(path, data, recipe, out=tmp_path / "small.onnx")
    one, other = (onnx.load(tmp_path / f"{n}.onnx").graph for n in ("large", "small"))
    for left, right in zip(one.initializer, other.initializer, strict=True):
        # Means for the correction of biases come from kernels of another layout.
        values = map(onnx.numpy_helper.to_array, (left, right))
        np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5, err_msg=left.name)
    assert large.metrics.sqnr_db == pytest.approx(small.metrics.sqnr_db, abs=0.1)


@pytest.mark.parametrize("linked", [True, False])
def test_weights_are_beside_the_model_for_newer_runtimes(
    all_large, sample_models, tmp_path, monkeypatch, linked
):
    """They open no file outside of the model's folder, nor symbolic links out of it."""
    path = external(sample_models / "digits_resnet.onnx", tmp_path)
    model, opened = load_model(path), []
    monkeypatch.setattr("onnxq.runtime.session._is_1_19", lambda: False)
    if not linked:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    session = ort.InferenceSession

    def look(file, *arguments, **options):
        proto = onnx.load(file, load_external_data=False)
        places = {
            e.value for w in proto.graph.initializer for e in w.external_data if e.key == "location"
        }
        opened.extend((Path(file).with_name(place).stat().st_nlink, place) for place in places)
        return session(file, *arguments, **options)

    monkeypatch.setattr(ort, "InferenceSession", look)
    x = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)
    found = outputs(model, x)
    assert opened == [(2 if linked else 1, "0.weights")]
    monkeypatch.undo()
    np.testing.assert_array_equal(found, outputs(sample_models / "digits_resnet.onnx", x))


def refuse(*_):
    raise OSError("another disk")


def test_files_go_with_their_tensors(all_large, sample_models):
    model = load_model(sample_models / "digits_mlp.onnx")
    pool = SessionPool(model, workers=2)
    x = {"input": np.zeros((1, 1, 8, 8), np.float32)}
    before = pool.run(x)["logits"]
    assert list(all_large.glob("*.weights"))
    del model
    gc.collect()
    assert not list(all_large.iterdir())
    # What a session has mapped stays.
    np.testing.assert_array_equal(pool.run(x)["logits"], before)


def test_a_tensor_is_written_once(all_large, sample_models):
    model = load_model(sample_models / "digits_mlp.onnx")
    files = WeightFiles()
    one, other = (files.mapped(copy) for copy in (model, model.clone()))
    paths = [
        [v.const_value.path for v in each.graph.initializers.values() if v.const_value.nbytes > 256]
        for each in (one, other)
    ]
    assert paths[0] == paths[1] and paths[0]


def test_no_room_for_the_weights_is_one_sentence(all_large, sample_models, monkeypatch):
    model = load_model(sample_models / "digits_mlp.onnx")
    gc.collect()
    monkeypatch.setattr(tempfile, "tempdir", str(all_large / "missing"))
    with pytest.raises(OutputError, match=r"no room for the model's weights.*TMPDIR"):
        WeightFiles().mapped(model)


def test_external_data_that_ends_early_is_named(all_large, sample_models, tmp_path):
    path = external(sample_models / "digits_mlp.onnx", tmp_path)
    data = tmp_path / "w.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"external data of .*digits_mlp\.onnx.* can't be read"):
        load_model(path)
    data.unlink()
    with pytest.raises(ModelError, match="put the data files beside the model"):
        load_model(path)


def test_an_output_beyond_protobufs_limit_runs(all_large, sample_models, tmp_path, monkeypatch):
    for module in ("onnxq.export.save", "onnxq.verify.opened"):
        monkeypatch.setattr(f"{module}.PROTOBUF_LIMIT", 1000)
    source = external(sample_models / "digits_resnet.onnx", tmp_path)
    out = tmp_path / "out.onnx"
    recipe = Recipe(samples=64, activation_bits=None, learn=("none",), exclude=("block2*",))
    result = compress(source, sample_models / "digits", recipe, out=out)
    assert (tmp_path / "out.onnx.data").is_file()
    onnx.checker.check_model(str(out))
    x = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(outputs(out, x), outputs(result.model, x), rtol=1e-4, atol=1e-5)
