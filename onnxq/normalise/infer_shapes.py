"""Shapes and dtypes of all values, as far as ONNX's inference reaches."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from onnxq.normalise.passes import PassResult


class InferShapes:
    """Runs ONNX's shape inference and writes the result onto the values.

    Names of dimensions that are not those of graph inputs are forgotten first: inference
    made them up where it knew less, and it would keep them where it could do better now.

    `modified` is always False: nothing that is computed changes, and a loop over passes
    must not go on for the sake of a shape.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """The model with the shapes filled in."""
        _forget_invented_names(model)
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
        return PassResult(model, modified=False)


def _forget_invented_names(model: ir.Model) -> None:
    known = {
        dim.value
        for value in model.graph.inputs
        for dim in value.shape or ()
        if not isinstance(dim, int)
    }
    for node in model.graph:
        for value in node.outputs:
            if value.shape is None or value.is_graph_output():
                continue
            value.shape = ir.Shape(
                [dim if isinstance(dim, int) or dim.value in known else None for dim in value.shape]
            )
