"""Types and shapes that ONNX Runtime knows and ONNX's own inference does not."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.normalise.passes import PassResult
from onnxq.session import expose, open_session

TENSOR = "tensor("
"""How ONNX Runtime's names of tensor types begin, as in `tensor(float)`."""


class AskRuntime:
    """Writes onto the outputs of operators that ONNX does not have what ONNX Runtime infers.

    ONNX's inference stops at them, and the training engine takes no value without a type.

    `modified` is always False: nothing that is computed changes.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """The model with the types filled in."""
        unknown = {
            str(value.name): value
            for node in model.graph
            if node.domain
            for value in node.outputs
            if value.name and value.type is None
        }
        if unknown:
            session = open_session(expose(model, list(unknown)), optimise=False)
            for found in session.get_outputs():
                if found.type.startswith(TENSOR):
                    _describe(unknown[found.name], found.type, found.shape)
        return PassResult(model, modified=False)


def _describe(value: ir.Value, kind: str, shape: list[int | str | None]) -> None:
    value.dtype = ir.DataType[kind.removeprefix(TENSOR).removesuffix(")").upper()]
    # It says [] of a scalar, and of what it knows no rank of.
    if shape:
        value.shape = ir.Shape([dim if isinstance(dim, int) else None for dim in shape])
