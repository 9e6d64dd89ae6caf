"""How many samples one training session can hold, and their sizes written into a graph."""

from __future__ import annotations

import onnx_ir as ir
import psutil

from onnxq.data.samples import Samples
from onnxq.normalise.infer_shapes import InferShapes
from onnxq.runtime.session import Feeds


def fix_sizes(model: ir.Model, feeds: Feeds) -> ir.Model:
    """A copy whose inputs have the sizes of these feeds, the first dimension left as it is.

    Gradients of pools and resizing need sizes that a model for any image does not state.
    The model itself is given back where every size is known.

    Args:
        model: a graph that all samples of one shape go through; it isn't changed.
        feeds: one batch of them, by input name; other inputs stay as they are.
    """
    if all(_is_sized(value) for value in model.graph.inputs if value.name in feeds):
        return model
    copy = model.clone(deep_copy=False)
    for value in copy.graph.inputs:
        if value.name in feeds and value.shape is not None:
            value.shape = ir.Shape([value.shape[0], *feeds[str(value.name)].shape[1:]])
    for node in copy.graph:
        for value in node.outputs:
            # Inference keeps what it finds, unknown dimensions included.
            value.shape = None
    return InferShapes()(copy).model


def sized_for(model: ir.Model, samples: Samples) -> ir.Model:
    """The graph with the sizes of the samples: those that are stacked have one shape."""
    return model if samples.batch is not None else fix_sizes(model, next(samples.batches(1)))


def _is_sized(value: ir.Value) -> bool:
    dims = value.shape or ()
    return all(isinstance(dim, int) for dim in dims[1:])


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
