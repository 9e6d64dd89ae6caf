"""Constant nodes become initializers."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from onnxq.normalise.passes import PassResult


class LiftConstants:
    """Turns the Constant nodes of the main graph and of sub-graphs into initializers.

    One whose value the graph returns stays a node: an initializer can't be an output.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """The model and whether any Constant was lifted."""
        result = common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(
            model
        )
        return PassResult(model, bool(result.modified))
