"""Shared weights with a per-channel factor of each layer's own.

Where a factor is folded into a layer (BatchNormalization, Mul), and other layers read the same
weight, a copy of the weight would be stored for each of them. Instead the layer reads

    Mul(weight, factor)

which ONNX Runtime folds when a session starts. The file holds the weight once, and the export turns
the factor into the layer's own scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.graph.facts import constant, is_op, producer, tensor_of

LEAST = 1024
"""Bytes of a weight from which sharing it saves more than the Mul takes."""

WIDEST = 1024.0
"""Largest ratio between two factors of a layer.

Channels further apart would want integer biases that 32 bits do not hold.
"""


@dataclass(frozen=True)
class ScaledWeight:
    """A weight times a factor.

    Attributes:
        node: the Mul.
        weight: the constant that others read too.
        factor: a constant that broadcasts to it.
    """

    node: ir.Node
    weight: ir.Value
    factor: ir.Value

    @property
    def array(self) -> np.ndarray:
        """The weight as its layer reads it."""
        weight, factor = constant(self.weight), constant(self.factor)
        assert weight is not None and factor is not None
        return np.asarray(weight * factor, weight.dtype)


def scaled_weight(value: ir.Value | None) -> ScaledWeight | None:
    """The weight and factor of a value that is the product of two float constants of the graph.

    The factor has the weight's rank or is a scalar, and has one element along all axes but one.
    """
    node = producer(value)
    if node is None or not is_op(node, "Mul"):
        return None
    pairs = (node.inputs, tuple(reversed(node.inputs)))
    for weight, factor in pairs:
        if weight is not None and factor is not None and _spreads(weight, factor):
            return ScaledWeight(node, weight, factor)
    return None


def weight_array(value: ir.Value | None) -> np.ndarray | None:
    """The array of a constant, or of a shared weight under a factor; None for any other value."""
    array = constant(value)
    if array is not None:
        return array
    scaled = scaled_weight(value)
    return None if scaled is None else scaled.array


def shares(value: ir.Value) -> bool:
    """Whether a weight, or the one behind its factor, is worth sharing and has other readers."""
    known = scaled_weight(value)
    weight = value if known is None else known.weight
    tensor = weight.const_value
    return tensor is not None and tensor.nbytes >= LEAST and len(weight.uses()) > 1


def usable_factor(factor: np.ndarray) -> bool:
    """Whether a weight may be shared under the factor, whose elements must not differ too much."""
    sizes = np.abs(factor)
    return bool(np.all(np.isfinite(sizes)) and sizes.min() * WIDEST >= sizes.max() > 0)


def _spreads(weight: ir.Value, factor: ir.Value) -> bool:
    tensors = tensor_of(weight), tensor_of(factor)
    if any(t is None or t.dtype != ir.DataType.FLOAT for t in tensors):
        return False
    shape, spread = (tuple(t.numpy().shape) for t in tensors if t is not None)
    if len(shape) < 2 or len(spread) not in (0, len(shape)):
        return False
    own = [i for i, size in enumerate(spread) if size != 1]
    return len(own) <= 1 and all(spread[i] == shape[i] for i in own)
