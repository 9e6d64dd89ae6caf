"""Training of the sample networks with onnxq's own engine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxq.engine import Engine
from onnxq.runtime.session import open_session
from onnxq.train.optimizer import Adam, CosineRestarts
from tools.network import Network

Architecture = Callable[[Network, ir.Value], ir.Value]
Arrays = dict[str, np.ndarray]

BATCH, SHARDS = 128, 2
WEIGHT_DECAY = 1e-4
LABEL_SMOOTHING = 0.05


def train(
    architecture: Architecture, images: np.ndarray, labels: np.ndarray, epochs: int, lr: float
) -> tuple[Arrays, Arrays]:
    """Parameters, and the mean and variance of every BatchNormalization over all images.

    Args:
        architecture: writes the network.
        images: (N, 1, 8, 8) float32, preprocessed.
        labels: (N,) class indices.
        epochs: passes over the images, under one cosine.
        lr: Adam's rate at the start.
    """
    parameters: Arrays = {}
    net = Network(parameters)
    logits = architecture(net, net.input("input", ["N", 1, 8, 8]))
    outputs = [net.cross_entropy(logits, BATCH), *net.batch_outputs]
    names = [str(value.name) for value in net.batch_outputs]
    model = net.model(outputs, "training")
    engine = Engine(model, list(parameters), extra_outputs=names)
    optimizer, random = Adam(lr=lr), np.random.default_rng(1)
    steps = len(images) // BATCH
    schedule = CosineRestarts(lr, epochs * steps)
    targets = _smoothed(labels)
    for step in range(epochs * steps):
        if step % steps == 0:
            order = random.permutation(len(images))
        chosen = order[step % steps * BATCH :][:BATCH]
        _, gradients = engine.gradients(parameters, _shards(images, targets, chosen))
        for name, gradient in gradients.items():
            gradient += WEIGHT_DECAY * parameters[name]
        optimizer.lr = schedule.lr(step)
        optimizer.step(parameters, gradients)
    engine.gradients(parameters, [{"input": images, "targets": targets}])
    # The mean of a node named `a.bn.mean` is the output `a.bn.mean.out`.
    statistics = {k.removesuffix(".out"): v for k, v in engine.extras[0].items()}
    return parameters, statistics


def inference_model(
    architecture: Architecture, parameters: Arrays, statistics: Arrays, name: str
) -> ir.Model:
    """The trained network with BatchNormalization left as nodes; input -> logits."""
    net = Network(parameters, statistics)
    logits = architecture(net, net.input("input", ["N", 1, 8, 8]))
    logits.name, logits.shape = "logits", ir.Shape(["N", 10])
    return net.model([logits], name)


def untrained_model(architecture: Architecture, name: str, seed: int = 0) -> ir.Model:
    """A network with random weights; all running means are 0 and all variances 1."""
    parameters: Arrays = {}
    net = Network(parameters, seed=seed)
    architecture(net, net.input("input", ["N", 1, 8, 8]))
    norms = [name.removesuffix(".gamma") for name in parameters if name.endswith(".gamma")]
    statistics = {f"{n}.mean": np.zeros_like(parameters[f"{n}.beta"]) for n in norms}
    statistics |= {f"{n}.var": np.ones_like(parameters[f"{n}.gamma"]) for n in norms}
    return inference_model(architecture, parameters, statistics, name)


def accuracy(model: ir.Model, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images that are classified right."""
    logits = open_session(model).run(["logits"], {"input": images})[0]
    return float((logits.argmax(axis=1) == labels).mean())


def _shards(images: np.ndarray, targets: np.ndarray, chosen: np.ndarray) -> list[Arrays]:
    return [
        {"input": images[part], "targets": targets[part]} for part in np.array_split(chosen, SHARDS)
    ]


def _smoothed(labels: np.ndarray) -> np.ndarray:
    """One-hot targets, a little of their weight spread over all classes."""
    one_hot: np.ndarray = np.eye(10, dtype=np.float32)[labels]
    return one_hot * np.float32(1 - LABEL_SMOOTHING) + np.float32(LABEL_SMOOTHING / 10)
