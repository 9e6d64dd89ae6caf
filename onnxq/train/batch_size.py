"""The number of samples that fit into one training session, and a graph with fixed input sizes."""

from __future__ import annotations

import onnx_ir as ir
import psutil

from onnxq.normalise.infer_shapes import InferShapes
from onnxq.runtime.dataset import Dataset, first
from onnxq.runtime.session import Feeds


def fix_sizes(model: ir.Model, feeds: Feeds) -> ir.Model:
    """A copy of the model whose inputs have the sizes of these feeds; the batch size stays free.

    Gradients of pooling and resizing need sizes that a model for any image size does not state.
    Where all sizes are known, the model itself is returned.

    Args:
        model: a graph for samples of one shape; it isn't changed.
        feeds: one batch by input name; other inputs keep their shapes.
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


def sized_for(model: ir.Model, samples: Dataset) -> ir.Model:
    """The graph with the sizes of the samples; samples that are stacked have one shape."""
    return model if samples.batch is not None else fix_sizes(model, first(samples))


def _is_sized(value: ir.Value) -> bool:
    dims = value.shape or ()
    return all(isinstance(dim, int) for dim in dims[1:])


SHARD_SIZE = 16
"""Samples in one session run, where memory allows."""
COPIES = 8
"""Arrays per activation in a training step: values, quantized values, masks and gradients."""
SESSIONS = 2


def shard_size(model: ir.Model, most: int = SHARD_SIZE, copies: int = COPIES) -> int:
    """The number of samples in one run of a training session.

    It is `most`, or less where two sessions of that size would take more than half of the free
    memory. Unknown dimensions count as 1.
    """
    free = psutil.virtual_memory().available // 2
    fits = free // max(sample_bytes(model) * copies * SESSIONS, 1)
    return int(max(1, min(most, fits)))


def sample_bytes(model: ir.Model) -> int:
    """Bytes of one sample's activations in float32; unknown dimensions count as 1."""
    return 4 * sum(_elements(v) for node in model.graph for v in node.outputs)


def _elements(value: ir.Value) -> int:
    if value.shape is None:
        return 0
    count = 1
    for dim in value.shape.dims[1:]:
        count *= dim if isinstance(dim, int) else 1
    return count
