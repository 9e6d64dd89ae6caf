"""Shapes and types of all values, by inference and by asking ONNX Runtime."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from onnxq.graph.facts import is_op, rank
from onnxq.normalise.passes import PassResult
from onnxq.runtime.session import expose, open_session

_MAY_GIVE_SEQUENCES = frozenset(
    {
        "SequenceEmpty",
        "SequenceConstruct",
        "SequenceInsert",
        "SequenceErase",
        "SequenceMap",
        "SplitToSequence",
        "Optional",
        "Identity",
        "If",
        "Loop",
        "Scan",
    }
)


class InferShapes:
    """Runs ONNX's shape inference and writes the result onto the values.

    Names of dimensions that are not those of graph inputs are removed first: inference made them up
    where it knew less, and would keep them where it knows more now. Names on graph outputs are
    removed too: exporters give one name to several sizes, and ONNX Runtime shares a buffer between
    tensors whose names agree. Behind operators that ONNX does not have, a rank may only be known
    from the value's readers.

    `modified` is always False: no computed value changes, and a loop over passes must not continue
    because of a shape.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """The model with the shapes filled in."""
        _forget_invented_names(model)
        before = _sequence_candidates(model)
        infer = common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)
        infer(model)
        if _ranks_from_readers(model):
            infer(model)
        if any(isinstance(kind, ir.SequenceType | ir.OptionalType) for _, kind, _ in before) or (
            _gives_sequences(model)
        ):
            # The pass writes a sequence's element type down as if it were a tensor's.
            for value, kind, shape in before:
                value.type, value.shape = kind, shape
        return PassResult(model, modified=False)


def _ranks_from_readers(model: ir.Model) -> bool:
    """Ranks that the readers imply: 2 before a Gemm, that of its weights before a Conv."""
    found = False
    for node in model.graph:
        if not is_op(node, "Gemm", "Conv", "ConvTranspose"):
            continue
        source, weight = node.inputs[0], node.inputs[1]
        size = 2 if node.op_type == "Gemm" else rank(weight)
        if source is None or source.type is None or source.shape is not None:
            continue
        if size is not None:
            source.shape = ir.Shape([None] * size)
            found = True
    return found


def _sequence_candidates(
    model: ir.Model,
) -> list[tuple[ir.Value, ir.TypeProtocol | None, ir.Shape | None]]:
    return [
        (value, value.type, value.shape)
        for node in model.graph.all_nodes()
        if node.op_type in _MAY_GIVE_SEQUENCES
        for value in node.outputs
    ]


def _gives_sequences(model: ir.Model) -> bool:
    plain = {"Identity", "If", "Loop", "Scan"}
    return any(
        node.op_type in _MAY_GIVE_SEQUENCES - plain for node in model.graph.all_nodes()
    ) or any(not isinstance(value.type, ir.TensorType) for value in model.graph.inputs)


def _forget_invented_names(model: ir.Model) -> None:
    known = {
        dim.value
        for value in model.graph.inputs
        for dim in value.shape or ()
        if not isinstance(dim, int)
    }
    for node in model.graph:
        for value in node.outputs:
            if value.shape is None:
                continue
            value.shape = ir.Shape(
                [dim if isinstance(dim, int) or dim.value in known else None for dim in value.shape]
            )


TENSOR = "tensor("
"""How ONNX Runtime's names of tensor types begin, as in `tensor(float)`."""


class AskRuntime:
    """Types that ONNX Runtime infers for operators that ONNX does not have.

    ONNX's inference stops at them, and the training engine needs a type for every value.

    `modified` is always False: no computed value changes.
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
