"""The contents of a model's file: every tensor as it is stored, and the nodes that read it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import Message

from onnxq.load.external import external_place
from onnxq.load.structure import node_label
from onnxq.load.tensors import is_external

SUBGRAPH, FUNCTION = "sub-graph", "function"
"""Kinds of graphs that are not the main one."""

OUTPUT = "output"
"""The operator of a reader that is no node: the graph, which gives the constant itself."""

_RANDOM = ("RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")

_WIDE_FIELDS = {"float_data": 4, "double_data": 8}
"""Bytes of a value in the typed fields that have a fixed width."""

_MODELS = "ai.onnx.ml"
"""The domain whose operators hold a whole model in their attributes."""

_LISTS = {
    "floats": ir.DataType.FLOAT,
    "ints": ir.DataType.INT64,
    "strings": ir.DataType.STRING,
}
"""The lists that an attribute may be, and what they hold."""

_TYPED_FIELDS = ("int32_data", "int64_data", "uint64_data", "string_data")


@dataclass(frozen=True)
class Reader:
    """A node that reads a constant.

    Attributes:
        operator: its operator, or `OUTPUT`.
        index: the input that the constant reaches; None for a tensor in the node's own attribute.
        place: position of the node in the main graph; None for nodes elsewhere.
        nested: the kind of graph around the node; '' in the main graph.
    """

    operator: str
    index: int | None
    place: int | None = None
    nested: str = ""


@dataclass
class StoredTensor:
    """A tensor in the file.

    Attributes:
        name: of the tensor, or of the value that it is.
        dtype: of its values.
        size: number of values.
        bytes: of its values, as they are stored.
        readers: the nodes that read it, directly or after nodes that compute from constants alone;
            empty where nothing reads it.
    """

    name: str
    dtype: ir.DataType
    size: int
    bytes: int
    readers: list[Reader] = field(default_factory=list)


@dataclass(frozen=True)
class Contents:
    """All bytes of a model.

    Attributes:
        tensors: every tensor; values in an external file that several tensors share are counted for
            the first.
        graph: bytes of the model's file that are no values of tensors: nodes, names, shapes.
        gaps: bytes of the external data files that no tensor refers to.
    """

    tensors: list[StoredTensor]
    graph: int
    gaps: int

    @property
    def size(self) -> int:
        """Bytes of the model's file and of its external data files."""
        return sum(tensor.bytes for tensor in self.tensors) + self.graph + self.gaps


def read_contents(proto: onnx.ModelProto, path: Path) -> Contents:
    """Account for every byte of a model.

    Args:
        proto: from `read_proto`.
        path: its file.
    """
    walk = _Walk(path.absolute().parent)
    walk.graph(proto.graph, {}, "")
    for function in proto.functions:
        walk.function(function)
    outside = sum(length for _, _, length in walk.places)
    files = {file for file, _, _ in walk.places}
    return Contents(
        walk.tensors,
        graph=path.stat().st_size - walk.inline,
        gaps=sum(file.stat().st_size for file in files) - outside,
    )


Origins = Mapping[str, list[StoredTensor]]
"""The tensors that each constant value is computed from, by its name."""


class _Walk:
    """A walk over the graphs of one model.

    Args:
        folder: of the model.

    Attributes:
        tensors: those found so far.
        places: places in external files, each once.
        inline: bytes of the tensors in the model's own file.
    """

    def __init__(self, folder: Path) -> None:
        self.tensors: list[StoredTensor] = []
        self.places: set[tuple[Path, int, int]] = set()
        self.inline = 0
        self._folder = folder

    def graph(self, graph: onnx.GraphProto, outer: Origins, nested: str) -> None:
        """Visit a graph and its sub-graphs, which see the constants around them."""
        own = {value.name for value in graph.input}
        origins = {name: found for name, found in outer.items() if name not in own}
        for tensor in graph.initializer:
            origins[tensor.name] = [self._add(tensor, tensor.name)]
        for sparse in graph.sparse_initializer:
            origins[sparse.values.name] = self._add_sparse(sparse)
        self._nodes(graph.node, origins, nested)
        for value in graph.output:
            for tensor in origins.get(value.name, ()):
                tensor.readers.append(Reader(OUTPUT, 0, None, nested))

    def function(self, function: onnx.FunctionProto) -> None:
        """Visit the constants in the body of a function."""
        origins: dict[str, list[StoredTensor]] = {}
        self._nodes(function.node, origins, FUNCTION)
        for name in function.output:
            for tensor in origins.get(name, ()):
                tensor.readers.append(Reader(function.name, None, None, FUNCTION))

    def _nodes(
        self, nodes: Iterable[onnx.NodeProto], origins: dict[str, list[StoredTensor]], nested: str
    ) -> None:
        nodes = list(nodes)
        for place, node in enumerate(nodes):
            found = list(self._own_tensors(node))
            if node.op_type == "Constant":
                origins[node.output[0]] = found
            else:
                reader = _reader(node, None, place, nested)
                for tensor in found:
                    tensor.readers.append(reader)
        _spread(nodes, origins)
        for place, node in enumerate(nodes):
            _read(node, origins, place, nested)
            for graph in _subgraphs(node):
                self.graph(graph, origins, nested or SUBGRAPH)

    def _own_tensors(self, node: onnx.NodeProto) -> Iterator[StoredTensor]:
        name = node_label(node) if node.op_type != "Constant" else node.output[0]
        for attribute in node.attribute:
            if node.op_type == "Constant" or node.domain == _MODELS:
                yield from self._add_list(attribute, name)
            tensors = [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
            for tensor in tensors:
                yield self._add(tensor, name)
            sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for each in (*sparse, *attribute.sparse_tensors):
                yield from self._add_sparse(each)

    def _add_sparse(self, sparse: onnx.SparseTensorProto) -> list[StoredTensor]:
        parts = (sparse.values, sparse.indices)
        return [self._add(part, sparse.values.name) for part in parts]

    def _add_list(self, attribute: onnx.AttributeProto, name: str) -> Iterator[StoredTensor]:
        """Add lists of numbers and strings in an attribute: trees, coefficients, constants."""
        for kind, dtype in _LISTS.items():
            if values := getattr(attribute, kind):
                stored = _field_bytes(onnx.AttributeProto(), kind, values)
                self.inline += stored
                self.tensors.append(StoredTensor(name, dtype, len(values), stored))
                yield self.tensors[-1]

    def _add(self, tensor: onnx.TensorProto, name: str) -> StoredTensor:
        stored = _inline_bytes(tensor)
        self.inline += stored
        if is_external(tensor):
            place = external_place(tensor, self._folder)
            stored = 0 if place in self.places else place[2]
            self.places.add(place)
        size = math.prod(tensor.dims)
        found = StoredTensor(name, ir.DataType(tensor.data_type), size, stored)
        self.tensors.append(found)
        return found


def _read(node: onnx.NodeProto, origins: Origins, place: int, nested: str) -> None:
    """Note what a node computes with."""
    if _is_constant(node, origins):
        return
    for index, name in enumerate(node.input):
        for tensor in origins.get(name, ()):
            tensor.readers.append(_reader(node, index, place, nested))


def _reader(node: onnx.NodeProto, index: int | None, place: int, nested: str) -> Reader:
    return Reader(node.op_type, index, None if nested else place, nested)


def _spread(nodes: list[onnx.NodeProto], origins: dict[str, list[StoredTensor]]) -> None:
    """Add the values that are computed from constants alone; nodes may be in any order."""
    waiting, left = list(nodes), len(nodes) + 1
    while len(waiting) < left:
        left = len(waiting)
        computed = []
        for node in waiting:
            if _is_constant(node, origins):
                made_of = {id(each): each for name in node.input for each in origins.get(name, ())}
                origins.update({name: list(made_of.values()) for name in node.output})
            else:
                computed.append(node)
        waiting = computed


def _is_constant(node: onnx.NodeProto, origins: Origins) -> bool:
    """Whether a node computes the same in every run, from constants in the file."""
    named = [name for name in node.input if name]
    random = node.op_type in _RANDOM or any(_subgraphs(node))
    return bool(named) and not random and all(name in origins for name in named)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _inline_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's values in the model's own file."""
    total = len(tensor.raw_data)
    for name, width in _WIDE_FIELDS.items():
        total += width * len(getattr(tensor, name))
    for name in _TYPED_FIELDS:
        if values := getattr(tensor, name):
            total += _field_bytes(onnx.TensorProto(), name, values)
    return total


def _field_bytes(empty: Message, name: str, values: Iterable[object]) -> int:
    """Serialized bytes of a repeated field."""
    getattr(empty, name).extend(values)
    return int(empty.ByteSize())
