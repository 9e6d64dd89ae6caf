"""Refuse what can't be quantized: unknown domains and quantized operators."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping

import onnx

from onnxq.errors import ModelError
from onnxq.graph.facts import DEFAULT_DOMAINS

KNOWN_DOMAINS = DEFAULT_DOMAINS | {"ai.onnx.ml", "com.microsoft"}
"""Operator domains that stock ONNX Runtime implements."""

QUANTIZED_OPS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "MatMulNBits",
        "MatMulBnb4",
        "GatherBlockQuantized",
        "QGemm",
        "QAttention",
        "FusedMatMulInteger",
    }
)
"""Operators whose presence says that a model is quantized already; QLinear* besides."""


COMPRESSED_KEY = "onnxq.version"
"""The key of a model's metadata that says that onnxq wrote it."""


@functools.cache
def first_versions() -> Mapping[str, int]:
    """The first opset of each of ONNX's own operators, by name."""
    versions: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain in DEFAULT_DOMAINS:
            known = versions.get(schema.name, schema.since_version)
            versions[schema.name] = min(known, schema.since_version)
    return versions


def check_operators(model: onnx.ModelProto, name: str) -> None:
    """Refuse a model with custom operators or with quantized ones.

    Raises:
        ModelError: names the first such node.
    """
    if any(entry.key == COMPRESSED_KEY for entry in model.metadata_props):
        raise ModelError(
            f'The model "{name}" is already quantized (by onnxq: "onnxq inspect" shows how), '
            "where a float model is expected; give the float model that it was made from."
        )
    domains = KNOWN_DOMAINS | {function.domain for function in model.functions}
    functions = {function.name for function in model.functions}
    for node in all_nodes(model):
        if node.domain not in domains:
            raise ModelError(
                f'The node "{node_label(node)}" of "{name}" is the custom operator '
                f'"{node.domain}::{node.op_type}", which stock ONNX Runtime does not know; '
                "export the model with ONNX's own operators."
            )
        own = node.domain in DEFAULT_DOMAINS and node.op_type not in functions
        if own and node.op_type not in first_versions():
            raise ModelError(
                f'The node "{node_label(node)}" of "{name}" is a "{node.op_type}", which ONNX does '
                f"not have (up to opset {onnx.defs.onnx_opset_version()}); give the model as it "
                "was exported, before ONNX Runtime's optimizer changed it."
            )
        if node.op_type in QUANTIZED_OPS or node.op_type.startswith("QLinear"):
            raise ModelError(
                f'The model "{name}" is already quantized (node "{node_label(node)}" is a '
                f'"{node.op_type}"), where a float model is expected; '
                "give the float model that it was made from."
            )


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of the main graph, of its sub-graphs and of the model's functions."""
    yield from nested_protos(model.graph.node)
    for function in model.functions:
        yield from nested_protos(function.node)


def nested_protos(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes and those of their sub-graphs, at any depth."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                yield from nested_protos(graph.node)


def node_label(node: onnx.NodeProto) -> str:
    """The node's name or, where it has none, that of its first output."""
    return node.name or next(iter(node.output), "") or node.op_type
