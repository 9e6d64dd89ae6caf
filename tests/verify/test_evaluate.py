from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import DataError, ModelError
from onnxq.verify.benchmark import benchmark
from onnxq.verify.evaluate import evaluate

MODEL = """
<ir_version: 8, opset_import: ["" : 13]>
net (float[N, 3] x) => (float[N, 3] logits)
<float[3] factor = {%s}>
{ logits = Mul (x, factor) }
"""


def save(path: Path, factors: str) -> Path:
    ir.save(ir.from_onnx_text(MODEL % factors), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "model.onnx", "1, 1, 1")


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    x = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    np.savez(tmp_path / "labelled.npz", x=x, labels=np.array([0, 1, 2, 1]))
    return tmp_path / "labelled.npz"


def test_labels_alone(model: Path, labelled: Path) -> None:
    found = evaluate(model, labelled)
    assert (found.samples, found.top1, found.reference_top1) == (4, 75, None)
    assert found.agreement is None


def test_labels_and_a_reference(model: Path, labelled: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other.onnx", "1, 1, -1")
    found = evaluate(other, labelled, model)
    assert (found.top1, found.reference_top1, found.drop) == (50, 75, 25)
    assert found.agreement == 75


def test_a_reference_alone(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.eye(3, dtype=np.float32))
    found = evaluate(model, tmp_path / "x.npz", model, task="classes")
    assert (found.samples, found.agreement, found.top1) == (3, 100, None)


def test_neither_labels_nor_a_reference(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.eye(3, dtype=np.float32))
    with pytest.raises(DataError, match="labels"):
        evaluate(model, tmp_path / "x.npz")


def test_the_order_of_samples_and_labels_is_one(model: Path, labelled: Path) -> None:
    assert evaluate(model, labelled, batch_size=3) == evaluate(model, labelled, batch_size=1)


def test_a_reference_with_other_inputs(model: Path, labelled: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    ir.save(
        ir.from_onnx_text((MODEL % "1, 1, 1").replace(" x)", " z)").replace("(x,", "(z,")), other
    )
    with pytest.raises(DataError, match="'z' float32"):
        evaluate(model, labelled, other)


def test_sample_model_gets_its_digits_right(sample_models: Path) -> None:
    found = evaluate(
        sample_models / "digits_mlp.onnx", sample_models / "digits" / "labelled", samples=100
    )
    assert found.samples == 100
    assert found.top1 is not None
    assert found.top1 >= 90


def test_benchmark_gives_sizes_and_ratios(model: Path) -> None:
    first, second = benchmark([model, model], rounds=5, batch_size=4)
    assert first.ratio == 1
    assert second.size == model.stat().st_size
    assert second.latency.rounds == 5


def test_benchmark_takes_shapes(model: Path) -> None:
    assert len(benchmark([model], rounds=1, shapes={"x": (7, 3)})) == 1
    with pytest.raises(ModelError, match=r"'7,4' does not fit the input 'x'"):
        benchmark([model], rounds=1, shapes={"x": (7, 4)})
    with pytest.raises(ModelError, match="No model has an input 'z'"):
        benchmark([model], rounds=1, shapes={"z": (7, 4)})


def test_benchmark_asks_for_free_sizes(tmp_path: Path) -> None:
    path = tmp_path / "free.onnx"
    text = (MODEL % "1, 1, 1").replace("float[N, 3]", "float[N, M, 3]")
    ir.save(ir.from_onnx_text(text), path)
    with pytest.raises(ModelError, match=r"--shape x=1,\?,3"):
        benchmark([path], rounds=1)
    assert benchmark([path], rounds=1, shapes={"x": (1, 5, 3)})


def test_benchmark_takes_samples(model: Path, labelled: Path) -> None:
    with np.load(labelled) as arrays:
        np.savez(labelled.with_name("x.npz"), x=arrays["x"])
    assert benchmark([model], rounds=1, data=labelled.with_name("x.npz"), batch_size=2)


def test_what_is_no_model_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_text("hello")
    for path in ("x.onnx", "absent.onnx"):
        with pytest.raises(ModelError, match=path.replace(".", r"\.")):
            benchmark([tmp_path / path])
