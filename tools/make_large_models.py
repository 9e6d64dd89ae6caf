"""Write a model of real size with random weights.

Run from the root of the repository: ``python -m tools.make_large_models NAME -o FILE``. NAME is
vgg16 (138 M parameters), resnet50 (26 M) or wide (554 M: more than 2 GB, with external data).
Weights are drawn as He et al. 2015 start them, so that activations stay finite; the same seed
gives the same bytes. Time, memory and size are those of trained models, decisions are not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.data.preprocess import METADATA_KEY, Preprocess
from tools.large_architectures import Scale, resnet50, vgg16, wide
from tools.network import Network

ARCHITECTURES: dict[str, Callable[[Network, Scale], ir.Value]] = {
    "vgg16": vgg16,
    "resnet50": resnet50,
    "wide": wide,
}
IMAGENET = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SPREAD = 0.1
"""Standard deviation of biases, betas and running means."""
EXTERNAL_FROM = 2**31
"""Bytes of weights from which they lie in a file of their own."""


class LargeNetwork(Network):
    """A network for inference whose weights are drawn in float32, one after another.

    Args:
        seed: of the generator.
        draw: False leaves every weight 0 and takes no memory, to count parameters.
    """

    def __init__(self, seed: int = 0, *, draw: bool = True) -> None:
        super().__init__({}, {}, seed)
        self._draw = draw

    def batch_norm(self, x: ir.Value, name: str, channels: int, start: float = 1.0) -> ir.Value:
        """One node; its statistics are those of inputs of variance 1."""
        values = {"gamma": start, "beta": 0.0}
        for key, value in values.items():
            self._parameter(f"{name}.{key}", (channels,), None, value)
        assert self.statistics is not None
        self.statistics[f"{name}.mean"] = self._drawn((channels,), 0.0, SPREAD)
        self.statistics[f"{name}.var"] = np.ones(channels, np.float32)
        return super().batch_norm(x, name, channels, start)

    def _parameter(
        self, name: str, shape: tuple[int, ...], fan_in: int | None, value: float = 0.0
    ) -> ir.Value:
        if name not in self.parameters:
            spread = np.sqrt(2 / fan_in) if fan_in else SPREAD
            self.parameters[name] = self._drawn(shape, value, spread)
        return super()._parameter(name, shape, fan_in, value)

    def _drawn(self, shape: tuple[int, ...], mean: float, spread: float) -> np.ndarray:
        if not self._draw:
            return np.broadcast_to(np.float32(0), shape)
        drawn = self._random.standard_normal(shape, np.float32)
        drawn *= np.float32(spread)
        drawn += np.float32(mean)
        return drawn


def make(name: str, scale: Scale | None = None, seed: int = 0, *, draw: bool = True) -> ir.Model:
    """A model of one of the `ARCHITECTURES`.

    Args:
        name: which.
        scale: how large; None for the real size.
        seed: of its weights.
        draw: False leaves every weight 0 and takes no memory.
    """
    net = LargeNetwork(seed, draw=draw)
    scale = scale or Scale()
    logits = ARCHITECTURES[name](net, scale)
    logits.name, logits.shape = "logits", ir.Shape(["N", scale.classes])
    model = net.model([logits], name)
    if name != "wide":
        model.metadata_props[METADATA_KEY] = IMAGENET.to_json()
    return model


def save(model: ir.Model, path: Path) -> None:
    """Write the model; weights of more than 2 GB go to `<name>.data` beside it."""
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    ir.save(model, path, external_data=f"{path.name}.data" if size >= EXTERNAL_FROM else None)


def main() -> None:
    """Make one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=ARCHITECTURES)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=float, default=1.0)
    options = parser.parse_args()
    model = make(options.name, Scale(width=options.width), options.seed)
    save(model, options.out)
    count = sum(value.const_value.size for value in model.graph.initializers.values())
    print(f"{options.out}: {count:,} constants")


if __name__ == "__main__":
    main()
