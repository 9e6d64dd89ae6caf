"""The sizes of the samples at hand, written into a graph that takes any."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.data.samples import Samples
from onnxq.normalise.infer_shapes import InferShapes
from onnxq.session import Feeds


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
