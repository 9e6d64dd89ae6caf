"""onnxsim, kept from folding BatchNormalization: that is a pass of our own."""

from __future__ import annotations

import logging

import onnx
import onnx_ir as ir
import onnxsim

from onnxq.normalise.passes import PassResult
from onnxq.session import PROTOBUF_LIMIT

logger = logging.getLogger(__name__)


class Simplify:
    """Replaces the model by what onnxsim makes of it, BatchNormalization kept.

    The protobuf hand-off of this stage. A model that onnxsim can't take is given back as it
    is, with a note. `modified` compares the serialised graphs.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """The simplified model, a new object."""
        size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
        if size >= PROTOBUF_LIMIT:
            return _left_alone(model, "it is larger than 2 GB")
        proto = ir.to_proto(model)
        try:
            simplified, _ = onnxsim.simplify(proto, skip_fuse_bn=True)
        except Exception as error:
            # Its exceptions come from C++ and share no base class but Exception.
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return _left_alone(model, lines[0].rstrip("."))
        if _interface(simplified) != _interface(proto):
            return _left_alone(model, "it changed the names of inputs or outputs")
        if simplified.graph == proto.graph:
            return PassResult(model, modified=False)
        result = ir.from_proto(simplified)
        result.ir_version = model.ir_version
        result.metadata_props.clear()  # onnxsim writes down its own options
        result.metadata_props.update(model.metadata_props)
        result.producer_name, result.producer_version = model.producer_name, model.producer_version
        return PassResult(result, modified=True)


def _interface(proto: onnx.ModelProto) -> list[list[str]]:
    return [[v.name for v in proto.graph.input], [v.name for v in proto.graph.output]]


def _left_alone(model: ir.Model, reason: str) -> PassResult:
    note = f"onnxsim left the model as it is ({reason}); onnxq's own passes go on without it."
    logger.debug(note)
    return PassResult(model, modified=False, notes=(note,))
