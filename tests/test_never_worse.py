"""A result that is no smaller, or broken, is not written unasked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result
from small_graphs import BODIES, CONV, HEAD, build, image_graph

from onnxq import inspect
from onnxq.cli import main
from onnxq.errors import ModelError, WorseError
from onnxq.options.recipe import Recipe
from onnxq.pipeline import compress
from onnxq.verify import verdict
from onnxq.verify.metrics import METADATA_KEY

ONE_LAYER = (
    "net (float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w) }"
)
QUICK = Recipe(batch_size=8, learn=("none",))


@pytest.fixture
def data(tmp_path) -> Path:
    x = np.random.default_rng(0).normal(size=(48, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    return tmp_path / "x.npz"


@pytest.fixture
def model(tmp_path) -> Path:
    """One that gets smaller: its first layer is large, its others are not."""
    big = np.random.default_rng(0).normal(0, 0.1, (6, 3, 17, 17)).astype(np.float32)
    body = f"{CONV.replace('1', '8').replace('wx', 'big')} z = Relu (a) {HEAD}"
    ir.save(image_graph(body, big=big), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_model_without_anything_to_gain_is_refused_before_calibration(
    tmp_path, data, monkeypatch
):
    ir.save(image_graph(f"{BODIES['no_bias'].replace('wx', 'w3')} {HEAD}"), tmp_path / "tiny.onnx")
    with monkeypatch.context() as patch:
        patch.setattr("onnxq.pipeline.choose_form", lambda *_: pytest.fail("calibrated"))
        with pytest.raises(ModelError, match=r"would not get smaller.*'Conv_a'.*--allow-worse"):
            compress(tmp_path / "tiny.onnx", data, QUICK, out=tmp_path / "out.onnx")
    assert files(tmp_path) == ["tiny.onnx", "x.npz"]
    found = compress(tmp_path / "tiny.onnx", data, QUICK, allow_worse=True)
    assert found.metrics.layers == 3 and found.metrics.ratio > 1
    rows = inspect(tmp_path / "tiny.onnx").layers
    assert {row.compute for row in rows} == {"float"}
    assert all("bytes" in row.reason for row in rows)


def test_the_file_of_a_tiny_model_is_smaller_with_less_metadata(tmp_path, data):
    ir.save(build(ONE_LAYER, {"w": (8, 3, 3, 3)}), tmp_path / "tiny.onnx")
    result = compress(tmp_path / "tiny.onnx", data, QUICK, out=tmp_path / "out.onnx")
    size = (tmp_path / "out.onnx").stat().st_size
    assert size == result.metrics.size_after < (tmp_path / "tiny.onnx").stat().st_size
    found = inspect(tmp_path / "out.onnx")
    assert found.recipe == QUICK
    assert found.metrics is not None and found.metrics.size_after == size
    assert [row.compute for row in found.layers] == ["weight-only"]
    assert "kernels" not in json.loads(ir.load(tmp_path / "out.onnx").metadata_props[METADATA_KEY])


def test_a_file_that_turns_out_no_smaller_is_refused_before_learning(tmp_path, data, monkeypatch):
    tiny = build(ONE_LAYER, {"w": (8, 3, 3, 3)})
    ir.save(tiny, tmp_path / "tiny.onnx")
    monkeypatch.setattr("onnxq.verify.result.file_bytes", lambda _: 500)
    monkeypatch.setattr("onnxq.export.compact.CLOSE_IN_SIZE", 0.0)
    monkeypatch.setattr("onnxq.pipeline.learn", lambda *_, **__: pytest.fail("learned"))
    with pytest.raises(WorseError, match=r"would have [\d,]+ bytes, and '.*tiny.onnx' has 500: "):
        compress(tmp_path / "tiny.onnx", data, QUICK, out=tmp_path / "out.onnx")
    assert files(tmp_path) == ["tiny.onnx", "x.npz"]


def command(*arguments: object) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(main, [str(each) for each in arguments])


@pytest.fixture
def strict(monkeypatch) -> None:
    """Nothing agrees enough."""
    monkeypatch.setattr(verdict, "BROKEN_AGREEMENT", 1.01)


def test_a_broken_result_is_refused_and_written_where_that_is_allowed(
    tmp_path, data, model, strict
):
    recipe, out = Recipe(batch_size=8, epochs=2), tmp_path / "out.onnx"
    with pytest.raises(WorseError, match=r"is broken: it decides .* 24 held-out .*--allow-worse"):
        compress(model, data, recipe, out=out)
    assert not out.exists()
    found = compress(model, data, recipe, out=out, resume=True, allow_worse=True)
    assert "is broken" in found.metrics.verdict and found.metrics.verdict in found.notes
    assert out.exists()
    assert files(tmp_path) == ["model.onnx", "out.onnx", "x.npz"]


def test_a_method_that_was_named_warns_and_is_written(tmp_path, data, model, strict):
    out = tmp_path / "out.onnx"
    options = ("--learn", "none", "-o", out, "-q")
    done = command("compress", model, "--data", data, *options)
    assert done.exit_code == 0
    assert "note: the compressed model is broken: it decides" in done.stderr
    assert out.exists()


def test_the_command_ends_with_one_sentence(tmp_path, data):
    ir.save(image_graph(f"a = Conv (x, w3, bx) z = Relu (a) {HEAD}"), tmp_path / "tiny.onnx")
    arguments = ("compress", tmp_path / "tiny.onnx", "--data", data, "-o", tmp_path / "o.onnx")
    done = command(*arguments)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
    assert command(*arguments, "--learn", "none", "--allow-worse", "-q").exit_code == 0
    assert "its weights take" in command("compress", tmp_path / "tiny.onnx", "--dry-run").stdout
