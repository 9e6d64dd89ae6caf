"""onnxsim, without its folding of constants and BatchNormalization, which have their own passes."""

from __future__ import annotations

import logging

import onnx
import onnx_ir as ir

from onnxq.errors import reason_of
from onnxq.graph.editor import free_initializer
from onnxq.normalise.passes import PassResult
from onnxq.runtime.large_weights import SMALLEST, is_large

logger = logging.getLogger(__name__)


class Simplify:
    """Replaces the model by onnxsim's result, with BatchNormalization kept.

    onnxsim folds constants whatever their size, while `FoldConstants` weighs the bytes. Large
    weights are inputs for onnxsim, so that it makes no copies of them. This is the protobuf
    hand-off of the stage. A model that onnxsim rejects is returned unchanged, with a note.
    `modified` compares the serialized graphs.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """The simplified model, a new object."""
        # Loads for a third of a second, and only a model that is quantized needs it.
        import onnxsim

        light, weights = _without_large_weights(model)
        proto = ir.to_proto(light)
        try:
            simplified, _ = onnxsim.simplify(proto, skip_fuse_bn=True, skip_constant_folding=True)
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


def _without_large_weights(model: ir.Model) -> tuple[ir.Model, Weights]:
    """A copy whose large weights are inputs, and these by name; of a small model, itself."""
    if not is_large(model):
        return model, {}
    copy = model.clone(deep_copy=False)
    graph, weights = copy.graph, Weights()
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= SMALLEST:
            weights[name] = tensor
            free_initializer(graph, value)
    return copy, weights


def _with_weights(model: ir.Model, weights: Weights) -> ir.Model:
    """Make these inputs constants again, in place."""
    for value in list(model.graph.inputs):
        if value.name in weights:
            model.graph.inputs.remove(value)
            value.const_value = weights[value.name]
            model.graph.register_initializer(value)
    return model


def _interface(proto: onnx.ModelProto) -> list[list[str]]:
    return [[v.name for v in proto.graph.input], [v.name for v in proto.graph.output]]


def _left_alone(model: ir.Model, reason: str) -> PassResult:
    note = f"onnxsim did not simplify the model ({reason}); onnxq's own passes run all the same."
    logger.debug(note)
    return PassResult(model, modified=False, notes=(note,))
