"""The optional folder of assets: real models, their images and their preprocessing."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnxq import Preprocess, Recipe, compress, evaluate
from onnxq.verify.evaluate import Evaluation
from onnxq.verify.result import Result

ASSETS = Path(__file__).parents[2] / "shared" / "assets"


@dataclass(frozen=True)
class Subject:
    """A model to measure on: its file, unlabelled and labelled data, preprocessing."""

    title: str
    model: Path
    unlabelled: Path
    labelled: Path
    preprocess: Preprocess


def subjects(assets: Path = ASSETS) -> dict[str, Subject]:
    """The models of the assets by short name."""
    cifar = (assets / "cifar10" / "unlabelled.npz", assets / "cifar10" / "labelled.npz")
    imagenet = (assets / "imagenet" / "unlabelled", assets / "imagenet" / "labelled")
    models = assets / "models"
    return {
        "resnet20": Subject(
            "ResNet-20",
            models / "cifar10_resnet20.onnx",
            *cifar,
            Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ),
        "shufflenet": Subject(
            "ShuffleNetV2 x0.5",
            models / "cifar10_shufflenetv2_x0_5.onnx",
            *cifar,
            Preprocess((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ),
        "mobilenet": Subject(
            "MobileNet v1 0.75",
            models / "imagenet_mobilenet_v1_075_224.onnx",
            *imagenet,
            Preprocess((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ),
        "darknet": Subject(
            "Tiny Darknet",
            models / "imagenet_tiny_darknet.onnx",
            *imagenet,
            Preprocess((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ),
    }


def measured(
    subject: Subject, recipe: Recipe, clock: Callable[[], float] = time.monotonic
) -> tuple[Result, Evaluation, float]:
    """A subject compressed, then evaluated on its labels; the seconds that compressing took."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        preprocess = subject.preprocess
        began = clock()
        result = compress(subject.model, subject.unlabelled, recipe, out=out, preprocess=preprocess)
        seconds = clock() - began
        found = evaluate(out, subject.labelled, subject.model, preprocess=preprocess)
    return result, found, seconds
