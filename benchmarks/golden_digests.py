"""Digests of a written model that no renaming of the code may change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import onnx


def leaves(value: Any, names: set[str], path: str = "") -> Iterator[tuple[str, Any]]:
    """Nested keys with what they hold; those of rows in a list are `[]`, those of layers `*`."""
    if isinstance(value, dict) and value:
        for key, inner in sorted(value.items()):
            step = "*" if key in names else key
            yield from leaves(inner, names, f"{path}/{step}" if path else step)
    elif isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        for inner in value:
            yield from leaves(inner, names, f"{path}[]")
    else:
        yield path, value


def names_in(model: onnx.ModelProto) -> set[str]:
    """Names of the layers and tensors of a model."""
    nodes = {name for node in model.graph.node for name in (node.name, *node.input, *node.output)}
    return nodes | {tensor.name for tensor in model.graph.initializer}


def metadata_digests(model: onnx.ModelProto, names: set[str]) -> dict[str, str]:
    """A digest for each nested key; layers are told apart by what is digested."""
    found: dict[str, list[Any]] = {}
    for entry in sorted(model.metadata_props, key=lambda entry: entry.key):
        value = parsed(entry.value)
        for path, leaf in leaves(value, names, entry.key):
            found.setdefault(path, []).append(leaf)
        for path, keys in named(value, names, entry.key):
            found.setdefault(path, []).append(keys)
    return {path: digest(json.dumps(held).encode())[:8] for path, held in sorted(found.items())}


def named(value: Any, names: set[str], path: str) -> Iterator[tuple[str, list[str]]]:
    """For each path through layers, which layers they are."""
    if isinstance(value, dict):
        layers = sorted(set(value) & names)
        if layers:
            yield f"{path}/*", layers
        for key, inner in sorted(value.items()):
            yield from named(inner, names, f"{path}/{'*' if key in names else key}")
    elif isinstance(value, list):
        for inner in value:
            yield from named(inner, names, f"{path}[]")


def parsed(text: str) -> Any:
    """The JSON value of a text, or the text where it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def graph_digests(model: onnx.ModelProto) -> dict[str, str]:
    """Of the parts of a graph, without metadata, documentation and names of nodes."""
    graph = model.graph
    parts = {
        "nodes": [nodes_of(graph), [nodes_of(each) for each in model.functions]],
        "initializers": sorted(map(tensor_of, graph.initializer)),
        "opsets": [
            model.ir_version,
            sorted((each.domain, each.version) for each in model.opset_import),
        ],
        "inputs": [interface_of(value) for value in graph.input],
        "outputs": [interface_of(value) for value in graph.output],
    }
    return {part: digest(json.dumps(value).encode())[:16] for part, value in parts.items()}


def nodes_of(graph: Any) -> list[Any]:
    """Nodes in order: operator, inputs, outputs, attributes."""
    return [
        [
            [node.domain, node.op_type],
            list(node.input),
            list(node.output),
            sorted([each.name, attribute_of(each)] for each in node.attribute),
        ]
        for node in graph.node
    ]


def attribute_of(attribute: onnx.AttributeProto) -> Any:
    """The value of an attribute, with its type."""
    kind = onnx.AttributeProto.AttributeType.Name(attribute.type)
    if kind == "TENSOR":
        return [kind, tensor_of(attribute.t)]
    if kind in ("GRAPH", "GRAPHS"):
        inner = [attribute.g] if kind == "GRAPH" else attribute.graphs
        return [
            kind,
            [[nodes_of(each), sorted(map(tensor_of, each.initializer))] for each in inner],
        ]
    copy = onnx.AttributeProto()
    copy.CopyFrom(attribute)
    copy.doc_string = ""
    return [kind, copy.SerializeToString(deterministic=True).hex()]


def tensor_of(tensor: onnx.TensorProto) -> list[Any]:
    """Name, type, shape and digest of the bytes."""
    values = onnx.numpy_helper.to_array(tensor)
    return [tensor.name, tensor.data_type, list(tensor.dims), digest(values.tobytes())]


def interface_of(value: onnx.ValueInfoProto) -> list[Any]:
    """Name, type and shape of an input or an output."""
    tensor = value.type.tensor_type
    shape = [each.dim_param or each.dim_value for each in tensor.shape.dim]
    return [value.name, tensor.elem_type, shape]


def digest(data: bytes) -> str:
    """SHA-256."""
    return hashlib.sha256(data).hexdigest()
