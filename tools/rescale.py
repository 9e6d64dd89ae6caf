"""Channels of very different ranges, without a change of what the network computes.

ReLU6 is clip(x, 0, 6): for a channel whose values x stay below 6 and a factor s <= 1,
relu6(s x) = s relu6(x). Scaling a channel's gamma and beta by s and the weights that read
it by 1 / s therefore changes nothing for such values, but one scale for a whole tensor of
weights, or of activations, no longer fits (Nagel et al. 2019, section 3, seen from behind).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.runtime.session import open_session

Arrays = dict[str, np.ndarray]

SMALLEST = {"expand": 1 / 160, "depthwise": 1 / 16}
"""The smallest factor per layer; the others are spread evenly, on a logarithmic axis, to 1."""
BORDER = 5.5
"""Channels whose values come this close to 6 stay as they are."""


def spread_ranges(parameters: Arrays, maxima: Arrays, seed: int = 2) -> None:
    """Scale the hidden channels of every inverted residual block, in place.

    Args:
        parameters: those of ``architectures.mobilenet``.
        maxima: largest value of each channel after each ReLU6, by node name.
        seed: of the factors.
    """
    random = np.random.default_rng(seed)
    blocks = sorted({name.split(".")[0] for name in parameters if name.startswith("block")})
    for block in blocks:
        for producer, consumer, axis in (("expand", "depthwise", 0), ("depthwise", "project", 1)):
            highest = maxima[f"{block}.{producer}.relu6"]
            drawn = SMALLEST[producer] ** random.uniform(0, 1, highest.shape)
            factors = np.where(highest < BORDER, drawn, 1.0).astype(np.float32)
            for name in ("gamma", "beta"):
                parameters[f"{block}.{producer}.bn.{name}"] *= factors.reshape(1, -1, 1, 1)
            shape = [1, 1, 1, 1]
            shape[axis] = -1
            parameters[f"{block}.{consumer}.conv.weight"] /= factors.reshape(shape)


def channel_maxima(model: ir.Model, images: np.ndarray) -> Arrays:
    """The largest value of each channel (axis 1) after each Clip, by node name."""
    taps = model.clone()
    values = {node.name: node.outputs[0] for node in taps.graph if node.op_type == "Clip"}
    for value in values.values():
        value.type = ir.TensorType(ir.DataType.FLOAT)
    taps.graph.outputs.extend(values.values())
    names = [str(value.name) for value in values.values()]
    results = open_session(taps).run(names, {"input": images})
    return {
        str(name): result.max(axis=(0, 2, 3)) for name, result in zip(values, results, strict=True)
    }
