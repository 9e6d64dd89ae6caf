"""Make an exported graph small: short names, equal constants once, no inner shapes.

A small model has as many nodes as a large one, and each name is stored where a value is written and
wherever it is read. What a user may look for keeps its name: inputs, outputs, the original's nodes,
tensors and constants. Quantized tensors and their parameters get names of a letter or two.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, product
from string import ascii_lowercase

import onnx_ir as ir
from onnx_ir.passes import common

from onnxq.export.constants import INTEGERS, spread_repeats, store_halves
from onnxq.export.interface import restore_interface
from onnxq.export.lower import WIDE, Lowering
from onnxq.export.save import model_bytes
from onnxq.load.interface import Interface
from onnxq.student.build import QUANTIZED, RAW
from onnxq.student.qparams import QParams
from onnxq.student.student import Student

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
