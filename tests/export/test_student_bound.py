"""The student against the kernels that ONNX Runtime runs, on real models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from small_graphs import Quantized, differing_codes, quantize

from onnxq.data.preprocess import Preprocess, find_preprocess
from onnxq.data.samples import open_samples
from onnxq.load.interface import input_specs
from onnxq.load.model import load_model
from onnxq.normalise.pipeline import normalise
from onnxq.options.recipe import Recipe
from onnxq.runtime.dataset import Samples
from onnxq.runtime.session import SessionPool, open_session
from onnxq.verify.kernels import INTEGER_KERNELS, read_kernels

SAMPLE_MODELS = ("digits_resnet", "digits_mobilenet", "digits_mlp")
CIFAR = {
    "cifar10_resnet20": Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10_shufflenetv2_x0_5": Preprocess((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}


@dataclass(frozen=True)
class Real:
    quantized: Quantized
    samples: Samples

    def feeds(self, count: int) -> dict[str, np.ndarray]:
        return next(self.samples.take(count, 3).batches(count))


def real(path: Path, data: Path, preprocess: Preprocess | None, recipe: Recipe, n: int) -> Real:
    model = load_model(path)
    preprocess = preprocess or find_preprocess(path, model.metadata_props)
    samples = open_samples(data, input_specs(model), preprocess, n)
    teacher = normalise(model, [next(samples.batches(2))]).model
    return Real(quantize(teacher, samples.take(64), recipe), samples)


@pytest.fixture(scope="module", params=["per-channel", "per-tensor"])
def granularity(request) -> Iterator[str]:
    yield request.param


@pytest.fixture(scope="module", params=SAMPLE_MODELS)
def digits(request, sample_models, granularity) -> Real:
    path = sample_models / f"{request.param}.onnx"
    if not path.exists():
        pytest.skip(f"needs the sample model {path.name}")
    data = sample_models / "digits" / "unlabelled"
    return real(path, data, None, Recipe(granularity=granularity), 600)


@pytest.fixture(scope="module", params=CIFAR)
def cifar(request, assets) -> Real:
    path = assets / "models" / f"{request.param}.onnx"
    data = assets / "cifar10" / "unlabelled.npz"
    return real(path, data, CIFAR[request.param], Recipe(), 320)


def check_layers(made: Real, count: int) -> None:
    elements, different, largest = differing_codes(made.quantized, made.feeds(count))
    assert largest <= 1
    assert different < elements / 1000


def check_decisions(made: Real) -> None:
    baked = SessionPool(made.quantized.baked, merge=False)
    exported = SessionPool(made.quantized.exported)
    alike = total = 0
    pairs = zip(
        baked.map(made.samples.batches(16)), exported.map(made.samples.batches(16)), strict=True
    )
    for student, kernels in pairs:
        (name,) = student
        same = student[name].argmax(axis=1) == kernels[name].argmax(axis=1)
        alike, total = alike + int(same.sum()), total + len(same)
    assert alike >= 0.999 * total, f"{total - alike} of {total} decisions differ"


def check_without_optimisation(made: Real) -> None:
    feeds = made.feeds(8)
    results = [
        open_session(model, optimise=False).run(None, feeds)
        for model in (made.quantized.baked, made.quantized.exported)
    ]
    for student, exported in zip(*results, strict=True):
        # A constant weight is packed, a dequantized one is not: sums of many terms are taken
        # in another order, codes are the same.
        np.testing.assert_allclose(exported, student, atol=1e-5 * np.abs(student).max(), rtol=0)


def check_kernels(made: Real) -> None:
    plan = made.quantized.plan
    kernels = read_kernels(made.quantized.exported, plan).layers
    integer = plan.integer_layers()
    assert len(integer) == len(plan.layers)
    assert all(kernels[spec.name] in INTEGER_KERNELS for spec in integer)


def test_sample_models_layer_by_layer(digits):
    check_layers(digits, 48)


def test_sample_models_decide_alike(digits):
    check_decisions(digits)


def test_sample_models_agree_without_optimisation(digits):
    check_without_optimisation(digits)


def test_sample_models_run_on_integer_kernels(digits):
    check_kernels(digits)


def test_cifar_models_layer_by_layer(cifar):
    check_layers(cifar, 16)


def test_cifar_models_decide_alike(cifar):
    check_decisions(cifar)


def test_cifar_models_agree_without_optimisation(cifar):
    check_without_optimisation(cifar)


def test_cifar_models_run_on_integer_kernels(cifar):
    check_kernels(cifar)
