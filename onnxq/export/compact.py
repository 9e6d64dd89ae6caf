"""An exported graph made small, and how large its file will be.

A constant whose elements repeat is stored once, and 16-bit floats take 16 bits.

A small model has as many nodes as a large one, and each name is stored where a value is written and
wherever it is read. What a user may look for keeps its name: inputs, outputs, the original's nodes,
tensors and constants. Quantized tensors and their parameters get names of a letter or two.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, product
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxq.errors import ModelError
from onnxq.export.interface import restore_interface
from onnxq.export.lookup import INTEGERS
from onnxq.export.lower import WIDE, Lowering
from onnxq.export.save import model_bytes
from onnxq.forms.variant import Variant
from onnxq.graph.editor import add_initializer
from onnxq.load.float_types import halved_constants
from onnxq.load.interface import Interface
from onnxq.load.read import file_bytes
from onnxq.numerics.packing import collapsed
from onnxq.options.recipe import Recipe
from onnxq.plan import Plan, make_plan
from onnxq.plan.layers import check_float_layers
from onnxq.plan.size import saved_bytes
from onnxq.student.build import QUANTIZED, RAW
from onnxq.student.qparams import QParams
from onnxq.student.student import Student

WORTH = 80
"""Bytes that must be saved: an Expand takes up to as many, with its constants."""

RANKS = {ir.DataType.FLOAT: 1, ir.DataType.INT32: 1, ir.DataType.INT8: 2}
"""Least rank by type: int8 of rank 1 are zero points, which are small and shared."""


def spread_repeats(graph: ir.Graph) -> None:
    """Replace constants that repeat along an axis by Expand nodes, in place.

    ONNX Runtime folds the nodes when a session starts.
    """
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or value.is_graph_output() or value.is_graph_input():
            continue
        array = tensor.numpy()
        if array.ndim < RANKS.get(tensor.dtype, array.ndim + 1):
            continue
        once = collapsed(array)
        if array.nbytes - once.nbytes >= WORTH:
            _spread(graph, value, array, once)


def _spread(graph: ir.Graph, value: ir.Value, array: np.ndarray, once: np.ndarray) -> None:
    name = str(value.name)
    small = add_initializer(graph, f"{name}.once", once)
    shape = add_initializer(graph, f"{name}.shape", np.array(array.shape, np.int64))
    node = ir.node("Expand", [small, shape], name=f"{name}.spread")
    result = node.outputs[0]
    result.type, result.shape = value.type, value.shape
    value.replace_all_uses_with(result)
    del graph.initializers[name]
    result.name = name
    graph.insert_before(graph[0], node)


def store_halves(model: ir.Model) -> None:
    """Store float32 constants in 16 bits, in place, where they fit and the original did so.

    Args:
        model: a lowered model; its metadata says how the original stored its weights.
    """
    for name, half in halved_constants(model).items():
        _store(model.graph, model.graph.initializers[name], half)


def _store(graph: ir.Graph, value: ir.Value, half: np.ndarray) -> None:
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{value.name}.cast")
    wide = cast.outputs[0]
    wide.name = f"{value.name}.wide"
    wide.type, wide.shape = value.type, value.shape
    for node, index in [use for use in value.uses() if use[0] is not cast]:
        node.replace_input_with(index, wide)
    tensor = ir.tensor(half, name=value.name)
    value.const_value, value.type = tensor, ir.TensorType(tensor.dtype)
    graph.insert_before(graph[0], cast)


SMALL = 1024
"""Elements of the constants that are compared: tables, scales, zero points, shapes."""


def export(student: Student, qparams: QParams, interface: Interface | None = None) -> ir.Model:
    """The deployable model of a student and its quantization parameters.

    Args:
        student: the student, not changed.
        qparams: the quantization parameters to write.
        interface: inputs and outputs of the file; None keeps the student's.
    """
    model = Lowering(student, qparams).run()
    if interface is not None:
        restore_interface(model, interface)
    spread_repeats(model.graph)
    store_halves(model)
    compact(model, student.model.graph)
    return model


def float_bytes(model: ir.Model) -> int:
    """Bytes of a float model's file, as `export` would write it; the model isn't changed."""
    copy, weights = model.clone(), 0
    store_halves(copy)
    compact(copy, model.graph)
    for value in copy.graph.initializers.values():
        if value.const_value is not None and value.const_value.size > SMALL:
            weights += value.const_value.nbytes
            dtype = value.const_value.dtype
            value.const_value = ir.tensor([], dtype, name=value.name)
    return weights + model_bytes(copy)


def compact(model: ir.Model, student: ir.Graph) -> None:
    """Make a lowered model smaller, in place; it computes the same.

    Shapes and types of inner values of the main graph are left out: ONNX Runtime infers them.

    Args:
        model: the result of `Lowering`.
        student: the graph that it was made from; its names stay.
    """
    common.DeduplicateInitializersPass(size_limit=SMALL)(model)
    graph = model.graph
    theirs = {str(value.name) for value in _values(student)}
    written = {str(value.name) for node in student for value in node.outputs}
    known = {name for name in written if not name.endswith((RAW, QUANTIZED))}
    nodes = {str(node.name) for node in student}
    # Inputs of the student that are still there are weights of retrained float layers.
    constants = set(student.initializers) | {str(value.name) for value in student.inputs}
    stay = _staying(graph, known) | constants
    inside = {str(v.name) for each in model.graphs() if each is not graph for v in _values(each)}
    # A short name that a tensor of the original once had would be taken for it.
    names = (name for name in _short_names() if name not in theirs | inside)
    for node in graph:
        if str(node.name) not in nodes:
            node.name = ""
    for value in list(_values(graph)):
        if value.is_graph_input() or value.is_graph_output():
            continue
        value.type = value.shape = None
        if value.name and value.name not in stay:
            value.name = next(names)


def _staying(graph: ir.Graph, known: set[str]) -> set[str]:
    """Names of the original's tensors: in float, or quantized where there is no float form."""
    written = {str(value.name) for node in graph for value in node.outputs}
    codes = {name + INTEGERS for name in known - written}
    return (written & (known | codes)) - _unquantized(graph, known)


def _unquantized(graph: ir.Graph, known: set[str]) -> set[str]:
    """Names of values that are only read to be quantized under another tensor's name."""
    found = set()
    for node in graph:
        source = node.inputs[0] if node.op_type == "QuantizeLinear" else None
        if source is not None and len(source.uses()) == 1:
            tensor = str(node.outputs[0].name).removesuffix(INTEGERS).removesuffix(WIDE)
            if tensor != source.name and tensor in known:
                found.add(str(source.name))
    return found


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """The values of one graph: inputs, constants and outputs of nodes."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _short_names() -> Iterator[str]:
    """Letters: a ... z, aa, ab ... zz, aaa ...; ONNX requires identifiers."""
    for length in count(1):
        yield from map("".join, product(ascii_lowercase, repeat=length))


CLOSE_IN_SIZE = 0.8
"""Share of the original's size from which on the file's is worth a look before learning."""

ESTIMATE_ERROR = 0.05
"""Share of a file's size by which a plan may be mistaken about it."""

METADATA_BYTES = 1024
"""Metrics, notes and preprocessing in a file, about."""


def variant_bytes(variant: Variant, recipe: Recipe) -> int:
    """The estimated file size of a variant under a recipe."""
    model = export(variant.student, variant.qparams)
    return model_bytes(model) + METADATA_BYTES + len(recipe.to_json())


def check_plan(
    plan: Plan, model: ir.Model, path: Path, recipe: Recipe, *, allow_worse: bool
) -> bool:
    """Check that a plan has layers to quantize, and that its file would be smaller.

    Args:
        plan: of the model.
        model: the normalised float model.
        path: the file of the original.
        recipe: the options.
        allow_worse: whether a file is written that is no smaller.

    Returns:
        Whether the sizes are so close that the file may turn out no smaller than the original.

    Raises:
        ModelError: there is nothing to quantize, or nothing to gain.
    """
    check_float_layers(plan, recipe)
    if not plan.layers:
        raise _nothing_to_quantize(plan, model, path, recipe)
    size, floats = file_bytes(path), float_bytes(model)
    expected = floats - saved_bytes(model.graph, plan, halved_constants(model).keys())
    if allow_worse or recipe.searches or (1 - ESTIMATE_ERROR) * expected < size:
        return expected > CLOSE_IN_SIZE * size
    reason = f"as floats they take {floats:,}" if floats > size else "most of them stay float"
    raise ModelError(
        f"'{path}' would not get smaller: its {size:,} bytes would become about "
        f"{expected:,} with {len(plan.layers)} layers as integers ({reason}); leave it "
        "unchanged, or add --allow-worse to quantize it all the same"
    )


def leaves_layers_float(plan: Plan, model: ir.Model, recipe: Recipe) -> bool:
    """Whether a plan keeps some layer in float only because of its size."""
    return len(make_plan(model, recipe).layers) > len(plan.layers)


def _nothing_to_quantize(plan: Plan, model: ir.Model, path: Path, recipe: Recipe) -> ModelError:
    """The error where there are no layers to quantize, or none would be smaller."""
    if could := make_plan(model, recipe).layers:
        first = next(iter(could))
        return ModelError(
            f"'{path}' would not get smaller: none of its layers takes fewer bytes as "
            f"integers ('{first}': {plan.left_alone[first]}); leave it unchanged, or add "
            "--allow-worse to quantize it all the same"
        )
    reasons = "; ".join(f"'{n}': {r}" for n, r in list(plan.left_alone.items())[:3])
    return ModelError(
        f"'{path}' has nothing to quantize: no Conv, ConvTranspose, Gemm or MatMul "
        f"with constant float weights" + (f" ({reasons})" if reasons else "")
    )
