from __future__ import annotations

import numpy as np

from onnxq.data.arrays import InputSpec
from onnxq.data.labelled import open_labelled
from onnxq.data.preprocess import Preprocess
from onnxq.data.samples import open_samples

CIFAR = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MOBILE = Preprocess((0.5,), (0.5,))


def test_cifar_array(assets):
    inputs = [InputSpec("input", np.dtype(np.float32), (None, 3, 32, 32))]
    samples = open_samples(assets / "cifar10" / "unlabelled.npz", inputs, CIFAR)
    assert sum(len(b["input"]) for b in samples.batches(100)) == 512
    labelled = open_labelled(assets / "cifar10" / "labelled.npz", inputs, CIFAR)
    assert len(labelled.samples) == len(labelled.labels) == 5000


def test_imagenet_files(assets):
    inputs = [InputSpec("input", np.dtype(np.float32), (None, 3, 224, 224))]
    samples = open_samples(assets / "imagenet" / "unlabelled", inputs, MOBILE, limit=40)
    assert sum(len(b["input"]) for b in samples.batches(16)) == 40
    labelled = open_labelled(assets / "imagenet" / "labelled", inputs, MOBILE).take(20)
    assert next(labelled.samples.batches(20))["input"].shape == (20, 3, 224, 224)
