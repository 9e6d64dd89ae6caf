"""Opened model files, float or quantized, ready to be run, measured and read."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.data.arrays import InputSpec
from onnxq.errors import DataError, ModelError
from onnxq.export.lookup import INTEGERS
from onnxq.graph.facts import computed_from_constants, producer
from onnxq.load.interface import input_specs
from onnxq.load.model import runnable
from onnxq.load.read import check_opens, file_bytes, read_graph
from onnxq.load.structure import COMPRESSED_KEY
from onnxq.runtime.session import PROTOBUF_LIMIT, Arrays, open_session


@dataclass(frozen=True)
class OpenedModel:
    """A model file that ONNX Runtime runs.

    Attributes:
        path: the file.
        model: its graph; weights may stay on the disk.
        inputs: its inputs.
        size: bytes of the file and of its external data.
        runnable: what a session opens: the file, or the model converted to other versions of ONNX
            or to float32.
    """

    path: Path
    model: ir.Model
    inputs: list[InputSpec]
    size: int
    runnable: Path | ir.Model

    @property
    def computed(self) -> ir.Model:
        """The graph that a session computes: the file's, or the converted one."""
        return self.runnable if isinstance(self.runnable, ir.Model) else self.model

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's metadata."""
        return self.model.metadata_props

    @property
    def is_compressed(self) -> bool:
        """Whether onnxq wrote the file."""
        return COMPRESSED_KEY in self.metadata


def open_model(path: Path) -> OpenedModel:
    """Read a model, quantized or not; it is converted only where it is too new.

    Raises:
        ModelError: the file can't be read, or ONNX Runtime can't run it.
    """
    model = read_graph(path)
    if not len(model.graph):
        raise ModelError(f"The model '{path}' has no nodes; copy or export it again.")
    source = runnable(path, model)
    check_opens(source, str(path))
    return OpenedModel(path, model, input_specs(model), file_bytes(path), source)


def common_inputs(opened: OpenedModel, other: OpenedModel | None) -> list[InputSpec]:
    """The inputs of both models, with the stricter batch size of the two.

    Raises:
        DataError: they take inputs of different names, dtypes or shapes.
    """
    if other is None:
        return opened.inputs
    named = {spec.name: spec for spec in other.inputs}
    inputs = []
    for spec in opened.inputs:
        match = named.get(spec.name)
        if match is None or not _take_alike(spec, match):
            raise DataError(
                f"The reference '{other.path}' takes {_listed(other.inputs)}, but "
                f"'{opened.path}' takes {_listed(opened.inputs)}; give the model's own original."
            )
        pairs = zip(spec.shape, match.shape, strict=True)
        shape = tuple(dim if dim is not None else dim2 for dim, dim2 in pairs)
        inputs.append(InputSpec(spec.name, spec.dtype, shape))
    return inputs


def _take_alike(spec: InputSpec, other: InputSpec) -> bool:
    """Whether one array fits both inputs; floats are fed to each in its own width."""
    same = spec.dtype == other.dtype or (spec.is_float and other.is_float)
    return same and _may_be_one(spec.shape, other.shape)


def _may_be_one(shape: tuple[int | None, ...], other: tuple[int | None, ...]) -> bool:
    """Whether one array fits both shapes."""
    return len(shape) == len(other) and all(
        None in dims or dims[0] == dims[1] for dims in zip(shape, other, strict=True)
    )


def _listed(inputs: list[InputSpec]) -> str:
    return ", ".join(f"'{spec.name}' {spec}" for spec in inputs)


def random_feeds(
    inputs: list[InputSpec], batch_size: int, shapes: Mapping[str, tuple[int, ...]]
) -> Arrays:
    """One feed of random values: normal floats, zeros for anything else.

    Args:
        inputs: the model's inputs.
        batch_size: of a free first dimension.
        shapes: whole shapes by input name, which take precedence.

    Raises:
        ModelError: a given shape does not fit the input, or another dimension is free.
    """
    generator = np.random.default_rng(0)
    feeds = {}
    for spec in inputs:
        shape = shapes.get(spec.name) or _default_shape(spec, batch_size)
        if not spec.fits(shape):
            raise ModelError(
                f"The shape '{','.join(map(str, shape))}' does not fit the input '{spec.name}', "
                f"which takes {spec}; give another with --shape."
            )
        values = generator.standard_normal(shape) if spec.is_float else np.zeros(shape)
        feeds[spec.name] = values.astype(spec.dtype)
    return feeds


def _default_shape(spec: InputSpec, batch_size: int) -> tuple[int, ...]:
    # A guess at a free dimension is no measurement, and some kernels crash on a length of 1.
    if None in spec.shape[1:]:
        example = ",".join("?" if dim is None else str(dim) for dim in (1, *spec.shape[1:]))
        raise ModelError(
            f"The input '{spec.name}' takes {spec}, whose size is free; give one with "
            f"--shape {spec.name}={example}, or samples with --data."
        )
    return tuple(batch_size if dim is None else dim for dim in spec.shape)


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


def unpacking_nodes(gather: ir.Node) -> list[ir.Node]:
    """The nodes that convert the rows of a table's lookup to float, in a file that onnxq wrote.

    These have no names, unlike the original's nodes.
    """
    found, value = list[ir.Node](), gather.outputs[0]
    while step := next((n for n in value.consumers() if _unpacks(n)), None):
        found.append(step)
        value = step.outputs[0]
    return found


def _unpacks(node: ir.Node) -> bool:
    return not node.name and node.op_type != "QuantizeLinear"


def table_rows(gather: ir.Node, indices: np.ndarray) -> np.ndarray:
    """Rows of a constant table as floats, in whatever form they are stored.

    Args:
        gather: a node of the main graph, with a constant table.
        indices: int64, (count,).

    Returns:
        float32, (count, ...).
    """
    graph, read = gather.graph, gather.inputs[1]
    assert isinstance(graph, ir.Graph) and read is not None
    result = [gather, *unpacking_nodes(gather)][-1].outputs[0]
    part = ir.Model(ir.convenience.extract(graph, [read], [result]), ir_version=10)
    (given,) = part.graph.inputs
    given.type, given.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([None])
    for value in part.graph.outputs:
        value.type, value.shape = value.type or ir.TensorType(ir.DataType.FLOAT), None
    ir.external_data.load_to_model(part)
    session = open_session(part, optimise=False)
    found: np.ndarray = session.run(None, {str(given.name): indices})[0]
    return found
