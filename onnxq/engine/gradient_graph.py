"""The gradient graph: a model with a loss, extended to compute the gradients."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import onnxruntime as ort
from onnxruntime.capi import _pybind_state

from onnxq.engine.ungradable import carrying_values, infer_types, ungradable
from onnxq.engine.wrap import separate_repeated_inputs, wrap_nodes
from onnxq.errors import EngineError
from onnxq.runtime.session import session_form

FATAL_ONLY = 4
"""The highest of ONNX Runtime's log levels; failures are raised as exceptions anyway."""


def build_gradient_graph(
    model: ir.Model, trainable: Sequence[str], loss: str, extra_outputs: Sequence[str]
) -> tuple[bytes, list[str]]:
    """A model whose outputs are loss, extra outputs and one ``<name>_grad`` per parameter.

    Args:
        model: the student with its loss; it isn't changed.
        trainable: float graph inputs.
        loss: name of a graph output with one element.
        extra_outputs: names of further graph outputs to keep.

    Returns:
        The serialized model, and the trainable inputs that the loss depends on, in order: only they
            have a gradient output.

    Raises:
        EngineError: a node between them has no gradient, or the builder refuses the model.
    """
    prepared = model.clone()
    _keep_outputs(prepared, [loss, *extra_outputs])
    infer_types(prepared)
    carrying = carrying_values(prepared.graph, trainable, [loss])
    names = {value.name for value in carrying}
    reached = [name for name in trainable if name in names]
    if not reached:
        raise EngineError(
            f"the loss '{loss}' depends on none of the {len(trainable)} trainable inputs; "
            "name inputs that lead to it."
        )
    if refused := ungradable(prepared, carrying):
        name, op_type, reason = refused[0]
        raise EngineError(
            f"no gradient passes the node '{name}' ({op_type}): {reason}; "
            "freeze the layers before it."
        )
    separate_repeated_inputs(prepared.graph, carrying)
    wrap_nodes(prepared, carrying)
    common_passes.RemoveUnusedFunctionsPass()(prepared)  # type: ignore[no-untyped-call] # ir's
    proto = _differentiate(ir.to_proto(session_form(prepared)), reached, loss)
    prune(proto, [loss, *extra_outputs, *(f"{name}_grad" for name in reached)])
    return proto.SerializeToString(), reached


def prune(proto: onnx.ModelProto, outputs: Sequence[str]) -> None:
    """Keep what the outputs need, in place.

    An output of ConvGrad that nobody reads is blanked: the builder names it even where it
    isn't wanted, and the kernel would compute it.
    """
    graph = proto.graph
    by_name = {value.name: value for value in graph.output}
    kept = [by_name[name] for name in outputs]
    del graph.output[:]
    graph.output.extend(kept)
    needed = set(outputs)
    nodes = []
    for node in reversed(graph.node):
        if not needed.intersection(filter(None, node.output)):
            continue
        if node.op_type == "ConvGrad":
            node.output[:] = [name if name in needed else "" for name in node.output]
        needed.update(_reads(node))
        nodes.append(node)
    nodes.reverse()
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)


def _keep_outputs(model: ir.Model, names: Sequence[str]) -> None:
    outputs = {value.name: value for value in model.graph.outputs}
    if missing := [name for name in names if name not in outputs]:
        raise EngineError(
            f"the graph has no output '{missing[0]}'; expected one of {sorted(map(str, outputs))}."
        )
    model.graph.outputs[:] = [outputs[name] for name in names]
    common_passes.RemoveUnusedNodesPass()(model)


def _differentiate(proto: onnx.ModelProto, trainable: list[str], loss: str) -> onnx.ModelProto:
    options = ort.SessionOptions()
    # By default the builder logs every graph transformer that it tries.
    options.log_severity_level = FATAL_ONLY
    try:
        builder = _pybind_state.GradientGraphBuilder(
            proto.SerializeToString(), {loss}, set(trainable), loss, options
        )
        builder.build()
    except RuntimeError as error:
        raise EngineError(
            f"no gradient of '{loss}' could be built: {error}; freeze the layers before that node."
        ) from error
    built = onnx.load_from_string(builder.get_model())
    known = {(function.domain, function.name) for function in built.functions}
    built.functions.extend(f for f in proto.functions if (f.domain, f.name) not in known)
    imported = {entry.domain for entry in built.opset_import}
    built.opset_import.extend(e for e in proto.opset_import if e.domain not in imported)
    return built


def _reads(node: onnx.NodeProto) -> set[str]:
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            for inner in graph.node:
                names |= _reads(inner)
            names.update(value.name for value in graph.output)
    return names
