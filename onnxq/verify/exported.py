"""Reading an exported file: inner tensors, stored weights and biases, size after deflate."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.export.lookup import INTEGERS
from onnxq.graph.facts import computed_from_constants, producer
from onnxq.runtime.session import PROTOBUF_LIMIT, open_session


def find_tensors(graph: ir.Graph) -> dict[str, ir.Value]:
    """The values of a graph by the original's tensor name, in float or quantized."""
    values = {str(value.name): value for node in graph for value in node.outputs}
    quantized = {
        name.removesuffix(INTEGERS): v for name, v in values.items() if name.endswith(INTEGERS)
    }
    return {**quantized, **values}


def with_outputs(model: ir.Model, tensors: Sequence[str]) -> ir.Model:
    """A copy of a model with more outputs; quantized tensors go through a DequantizeLinear.

    Args:
        model: not changed.
        tensors: names from `find_tensors`.
    """
    model = model.clone(deep_copy=False)
    graph = model.graph
    found = find_tensors(graph)
    present = {output.name for output in graph.outputs}
    for name in dict.fromkeys(tensors):
        if name not in present:
            graph.outputs.append(_real(graph, name, found))
    ir.external_data.load_to_model(model)
    return model


def _real(graph: ir.Graph, name: str, found: Mapping[str, ir.Value]) -> ir.Value:
    value = found[name]
    if value.name != name:
        quantize = _quantizer(value)
        node = ir.node("DequantizeLinear", [value, *quantize.inputs[1:]], name=f"{name}.probe")
        graph.append(node)
        value = node.outputs[0]
        value.name = name
    if value.type is None:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    return value


def _quantizer(value: ir.Value) -> ir.Node:
    """The QuantizeLinear behind a quantized value, across data-movement operators."""
    node = value.producer()
    while node is not None and node.op_type != "QuantizeLinear":
        source = node.inputs[0]
        node = producer(source)
    assert node is not None
    return node


CHUNK = 2**24
LEVEL = 6


def deflated_size(chunks: Iterable[bytes | memoryview]) -> int:
    """Bytes of one deflate stream of all chunks."""
    stream = zlib.compressobj(LEVEL)
    return sum(len(stream.compress(chunk)) for chunk in chunks) + len(stream.flush())


def shipped_files(paths: Iterable[Path]) -> int:
    """Bytes of some files after deflate, each by itself."""
    return sum(deflated_size(_read(path)) for path in paths)


def shipped_model(model: ir.Model) -> int:
    """Bytes of a model in memory after deflate, as it will be written."""
    tensors = [v.const_value for v in model.graph.initializers.values()]
    if sum(each.nbytes for each in tensors if each is not None) < PROTOBUF_LIMIT:
        return deflated_size([ir.to_proto(model).SerializeToString(deterministic=True)])
    return deflated_size(each.tobytes() for each in tensors if each is not None)


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def stored_array(value: ir.Value | None) -> np.ndarray | None:
    """The float array of a constant, or of a value that is computed from constants alone.

    ONNX Runtime computes it, in whatever form the weights are stored.

    Args:
        value: a value of the main graph.

    Returns:
        the array, or None where the value depends on the graph's inputs, or is None.
    """
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    graph = value.graph
    if graph is None or not computed_from_constants(value):
        return None
    part = ir.Model(ir.convenience.extract(graph, [], [value]), ir_version=10)
    ir.external_data.load_to_model(part)
    found: np.ndarray = open_session(part, optimise=False).run(None, {})[0]
    return found
