"""What nobody reads goes."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from onnxq.normalise.passes import PassResult


class SweepDead:
    """Removes nodes and initializers that no output depends on; graph inputs stay."""

    def __call__(self, model: ir.Model) -> PassResult:
        """The model and whether anything was removed."""
        result = common.RemoveUnusedNodesPass()(model)
        return PassResult(model, bool(result.modified))
