"""onnxsim, kept from folding BatchNormalization and large constants: passes of our own do."""

from __future__ import annotations

import logging

import onnx
import onnx_ir as ir
import onnxsim

from onnxq.errors import reason_of
from onnxq.normalise.passes import PassResult

logger = logging.getLogger(__name__)

FOLDED = 1024
"""Bytes of constants, and of what is computed from them, up to which onnxsim folds: FoldConstants
weighs the bytes of larger ones."""


class Simplify:
    """Replaces the model by what onnxsim makes of it, BatchNormalization kept.

    It sees weights as inputs, so that it neither copies nor folds them. The protobuf hand-off of
    this stage. A model that onnxsim can't take is given back as it
    is, with a note. `modified` compares the serialised graphs.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """The simplified model, a new object."""
        light, weights = _without_weights(model)
        proto = ir.to_proto(light)
        try:
            simplified, _ = onnxsim.simplify(proto, skip_fuse_bn=True, tensor_size_threshold="1KB")
        except Exception as error:
            # Its exceptions come from C++ and share no base class but Exception.
            return _left_alone(model, reason_of(error))
        if _interface(simplified) != _interface(proto):
            return _left_alone(model, "it changed the names of inputs or outputs")
        if simplified.graph == proto.graph:
            return PassResult(model, modified=False)
        result = _with_weights(ir.from_proto(simplified), weights)
        result.ir_version = model.ir_version
        result.metadata_props.clear()  # onnxsim writes down its own options
        result.metadata_props.update(model.metadata_props)
        result.producer_name, result.producer_version = model.producer_name, model.producer_version
        return PassResult(result, modified=True)


Weights = dict[str, ir.TensorProtocol]


def _without_weights(model: ir.Model) -> tuple[ir.Model, Weights]:
    """A copy that takes its weights as inputs, and these by name."""
    copy = model.clone(deep_copy=False)
    graph, weights = copy.graph, Weights()
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > FOLDED:
            del graph.initializers[name]
            weights[name], value.const_value = tensor, None
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.numpy().shape)
            graph.inputs.append(value)
    return copy, weights


def _with_weights(model: ir.Model, weights: Weights) -> ir.Model:
    """The model with these inputs as constants again, in place."""
    for value in list(model.graph.inputs):
        if value.name in weights:
            model.graph.inputs.remove(value)
            value.const_value = weights[value.name]
            model.graph.register_initializer(value)
    return model


def _interface(proto: onnx.ModelProto) -> list[list[str]]:
    return [[v.name for v in proto.graph.input], [v.name for v in proto.graph.output]]


def _left_alone(model: ir.Model, reason: str) -> PassResult:
    note = f"onnxsim left the model as it is ({reason}); onnxq's own passes go on without it."
    logger.debug(note)
    return PassResult(model, modified=False, notes=(note,))
