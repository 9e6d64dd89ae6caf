"""What a written model declares: inputs and outputs as the original's, and its metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxq import __version__
from onnxq.data.preprocess import METADATA_KEY as PREPROCESS_KEY
from onnxq.data.preprocess import Preprocess
from onnxq.export.save import model_bytes
from onnxq.graph.editor import add_initializer
from onnxq.graph.facts import constant, input_at, is_op, static_dim
from onnxq.load.interface import Interface, Port
from onnxq.load.structure import COMPRESSED_KEY
from onnxq.normalise.infer_shapes import InferShapes
from onnxq.options.recipe import METADATA_KEY as RECIPE_KEY
from onnxq.options.recipe import Recipe

INSIDE = ".float32"
"""Suffix of an input or output in the type that the model computes in."""


def restore_types(model: ir.Model, interface: Interface) -> None:
    """Give inputs and outputs the original's types, in place.

    Args:
        model: computes in float32.
        interface: of the original.
    """
    graph = model.graph
    for value, port in zip(graph.inputs, interface.inputs, strict=True):
        if _differ(value, port):
            _cast_input(graph, value, port)
    for i, port in enumerate(interface.outputs):
        if _differ(graph.outputs[i], port):
            graph.outputs[i] = _cast_output(graph, graph.outputs[i], port)


def _differ(value: ir.Value, port: Port) -> bool:
    return port.type is not None and value.type is not None and value.type != port.type


def _cast_input(graph: ir.Graph, value: ir.Value, port: Port) -> None:
    assert port.type is not None and value.type is not None
    cast = _cast(value, value.type)
    inner = cast.outputs[0]
    inner.name = f"{value.name}{INSIDE}"
    readers = [(node, index) for node, index in value.uses() if node is not cast]
    for node, index in readers:
        node.replace_input_with(index, inner)
    value.type = port.type
    graph.insert_before(graph[0], cast)


def _cast_output(graph: ir.Graph, value: ir.Value, port: Port) -> ir.Value:
    assert port.type is not None
    cast = _cast(value, port.type)
    given, name = cast.outputs[0], str(value.name)
    value.name, given.name = f"{name}{INSIDE}", name
    given.shape = value.shape
    graph.append(cast)
    return given


def _cast(value: ir.Value, to: ir.TypeProtocol) -> ir.Node:
    node = ir.node("Cast", [value], {"to": to.dtype}, name="")
    node.outputs[0].type = to
    return node


FREE = (0, -1)
"""First sizes of a Reshape that follow from the input's size."""


def restore_interface(model: ir.Model, interface: Interface) -> None:
    """Declare the original's shapes, and the inner shapes that follow from them, in place.

    A batch that was freed for training is fixed again: accelerators need known sizes.

    Args:
        model: the lowered model, before its inner shapes are left out.
        interface: of the original.
    """
    graph = model.graph
    fixed = [_declare(*pair) for pair in zip(graph.inputs, interface.inputs, strict=True)]
    if any(fixed):
        _fix_reshapes(model)
    for value, port in zip(graph.outputs, interface.outputs, strict=True):
        _declare(value, port)


def _declare(value: ir.Value, port: Port) -> bool:
    """Declare a shape; returns whether a dimension that was free has a size now."""
    if port.shape is None:
        return False
    before, value.shape = value.shape, port.shape.copy()
    return before is None or any(
        isinstance(size, int) and size != old for size, old in zip(port.shape, before, strict=True)
    )


def _fix_reshapes(model: ir.Model) -> None:
    """Write the first size of each Reshape that the inputs' sizes determine."""
    graph = model.graph
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    InferShapes()(model)
    for node in graph:
        if not is_op(node, "Reshape") or node.attributes.get_int("allowzero"):
            continue
        shape, size = constant(input_at(node, 1)), static_dim(node.outputs[0], 0)
        if shape is not None and size is not None and shape.size and shape[0] in FREE:
            numbers = np.array([size, *shape[1:]], np.int64)
            node.replace_input_with(1, _shape(graph, numbers))
    common.RemoveUnusedNodesPass()(model)


def _shape(graph: ir.Graph, numbers: np.ndarray) -> ir.Value:
    name = "shape." + "x".join(map(str, numbers.tolist()))
    known = graph.initializers.get(name)
    return known if known is not None else add_initializer(graph, name, numbers)


MOST_DESCRIPTIONS = 6
"""Until metadata that states the size of its file is right: a digit or a note more is bytes more.
"""


def own_metadata(
    recipe: Recipe, preprocess: Preprocess | None, *, spelt_out: bool
) -> dict[str, str]:
    """The metadata of a compressed model beside its metrics.

    Args:
        recipe: the options that it was made with.
        preprocess: how an image becomes its input; None where nobody said it.
        spelt_out: whether options at their defaults are stated too.
    """
    entries = {COMPRESSED_KEY: __version__, RECIPE_KEY: recipe.to_json(spelt_out=spelt_out)}
    return entries | preprocess_metadata(preprocess)


def preprocess_metadata(preprocess: Preprocess | None) -> dict[str, str]:
    """The entry that says how an image becomes the input; none where nobody said it."""
    return {} if preprocess is None else {PREPROCESS_KEY: preprocess.to_json()}


def add_metadata(model: ir.Model, entries: Mapping[str, str]) -> None:
    """Put the entries among the model's own, in place, in sorted order."""
    merged = {**model.metadata_props, **entries}
    model.metadata_props.clear()
    model.metadata_props.update(sorted(merged.items()))


def describe(model: ir.Model, entries: Callable[[int], Mapping[str, str]]) -> int:
    """Put metadata into a model, in place, of which an entry may state the size of the file.

    Args:
        model: the one that is written next.
        entries: the metadata for a file of so many bytes.

    Returns:
        Those bytes.
    """
    size = model_bytes(model)
    for _ in range(MOST_DESCRIPTIONS):
        stated = size
        add_metadata(model, entries(stated))
        size = model_bytes(model)
        if size == stated:
            break
    return size
