"""How many samples one training session can hold."""

from __future__ import annotations

import onnx_ir as ir
import psutil

SHARD_SIZE = 16
"""Samples in one session run, where memory allows."""
COPIES = 8
"""Arrays per activation in a training step: values, codes, masks and gradients."""
SESSIONS = 2


def shard_size(model: ir.Model, most: int = SHARD_SIZE, copies: int = COPIES) -> int:
    """The number of samples in one run of a training session.

    It is `most` unless half the free memory wouldn't hold two sessions of that size. Dimensions
    of unknown size count as 1.
    """
    free = psutil.virtual_memory().available // 2
    fits = free // max(sample_bytes(model) * copies * SESSIONS, 1)
    return int(max(1, min(most, fits)))


def sample_bytes(model: ir.Model) -> int:
    """The size of one sample's activations in float32; unknown dimensions count as 1."""
    return 4 * sum(_elements(v) for node in model.graph for v in node.outputs)


def _elements(value: ir.Value) -> int:
    if value.shape is None:
        return 0
    count = 1
    for dim in value.shape.dims[1:]:
        count *= dim if isinstance(dim, int) else 1
    return count
