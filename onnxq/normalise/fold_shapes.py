"""Shape arithmetic folded to constants, where it depends on known sizes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from onnxq.graph.editor import Editor
from onnxq.graph.facts import constant, input_at, is_op
from onnxq.normalise.passes import PassResult

Dim = int | str | None
"""An element: a number, the name of a symbolic dimension, or None for unknown."""

_LONGEST = 64


@dataclass(frozen=True)
class ShapeValue:
    """The elements of an integer tensor of rank 0 (one element) or 1."""

    elements: tuple[Dim, ...]
    scalar: bool = False

    @property
    def numbers(self) -> tuple[int, ...] | None:
        """The elements if all are numbers."""
        found = tuple(e for e in self.elements if isinstance(e, int))
        return found if len(found) == len(self.elements) else None


def evaluate_shapes(nodes: Iterable[ir.Node]) -> dict[ir.Value, ShapeValue]:
    """The values that nodes in topological order compute from shapes and constants."""
    found: dict[ir.Value, ShapeValue] = {}

    def lookup(value: ir.Value | None) -> ShapeValue | None:
        return found.get(value) if value in found else _constant_value(value)

    for node in nodes:
        rule = _RULES.get(node.op_type)
        if rule is None or not is_op(node, node.op_type) or node.inputs[0] is None:
            continue
        result = rule(node, lookup)
        if result is not None and len(result.elements) <= _LONGEST:
            found[node.outputs[0]] = result
    return found


Lookup = Callable[[ir.Value | None], ShapeValue | None]


def dims_of(value: ir.Value | None) -> tuple[Dim, ...] | None:
    """The dimensions of a value: numbers, names, or None for unknown ones."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def _constant_value(value: ir.Value | None) -> ShapeValue | None:
    array = constant(value)
    if array is None or array.dtype not in (np.int64, np.int32):
        return None
    if array.ndim > 1 or array.size > _LONGEST:
        return None
    return ShapeValue(tuple(int(e) for e in array.reshape(-1)), scalar=array.ndim == 0)


def _shape(node: ir.Node, lookup: Lookup) -> ShapeValue | None:
    dims = dims_of(node.inputs[0])
    if dims is None:
        return None
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", len(dims))
    return ShapeValue(dims[start:end])


def _gather(node: ir.Node, lookup: Lookup) -> ShapeValue | None:
    data, indices = lookup(node.inputs[0]), lookup(node.inputs[1])
    if data is None or indices is None or data.scalar or (places := indices.numbers) is None:
        return None
    size = len(data.elements)
    if any(not -size <= place < size for place in places):
        return None
    return ShapeValue(tuple(data.elements[place] for place in places), indices.scalar)


def _concat(node: ir.Node, lookup: Lookup) -> ShapeValue | None:
    elements: list[Dim] = []
    for value in node.inputs:
        part = lookup(value)
        if part is None and value is not None and dims_of(value) == (1,):
            part = ShapeValue((None,))
        if part is None or part.scalar:
            return None
        elements.extend(part.elements)
    return ShapeValue(tuple(elements))


def _unsqueeze(node: ir.Node, lookup: Lookup) -> ShapeValue | None:
    data = lookup(node.inputs[0])
    return ShapeValue(data.elements) if data is not None and data.scalar else None


def _squeeze(node: ir.Node, lookup: Lookup) -> ShapeValue | None:
    data = lookup(node.inputs[0])
    if data is None or data.scalar or len(data.elements) != 1:
        return None
    return ShapeValue(data.elements, scalar=True)


def _cast(node: ir.Node, lookup: Lookup) -> ShapeValue | None:
    integers = (ir.DataType.INT64, ir.DataType.INT32)
    if node.attributes.get_int("to", 0) not in [int(dtype) for dtype in integers]:
        return None
    return lookup(node.inputs[0])


def _slice(node: ir.Node, lookup: Lookup) -> ShapeValue | None:
    data = lookup(node.inputs[0])
    bounds = [lookup(input_at(node, index)) for index in (1, 2)]
    step = lookup(input_at(node, 4)) or ShapeValue((1,))
    if data is None or data.scalar or any(b is None or b.numbers is None for b in bounds):
        return None
    start, end = (b.numbers[0] for b in bounds if b is not None and b.numbers)
    if step.numbers is None:
        return None
    return ShapeValue(data.elements[start : end : step.numbers[0]])


def _arithmetic(node: ir.Node, lookup: Lookup) -> ShapeValue | None:
    left, right = lookup(node.inputs[0]), lookup(node.inputs[1])
    if left is None or right is None:
        return None
    size = max(len(left.elements), len(right.elements))
    if {len(left.elements), len(right.elements)} - {1, size}:
        return None
    pairs = zip(_stretch(left, size), _stretch(right, size), strict=True)
    elements = tuple(_combine(node.op_type, a, b) for a, b in pairs)
    return ShapeValue(elements, left.scalar and right.scalar)


def _stretch(value: ShapeValue, size: int) -> tuple[Dim, ...]:
    return value.elements * size if len(value.elements) == 1 else value.elements


def _combine(op_type: str, a: Dim, b: Dim) -> Dim:
    if b == 1 and op_type in ("Mul", "Div"):
        return a
    if a == 1 and op_type == "Mul":
        return b
    if b == 0 and op_type in ("Add", "Sub"):
        return a
    if not isinstance(a, int) or not isinstance(b, int):
        return None
    match op_type:
        case "Add":
            return a + b
        case "Sub":
            return a - b
        case "Mul":
            return a * b
        case _:
            # ONNX divides integers towards zero, as C does.
            return None if b == 0 else int(a / b) if a * b < 0 else a // b


def _same(node: ir.Node, lookup: Lookup) -> ShapeValue | None:
    return lookup(node.inputs[0])


_RULES: dict[str, Callable[[ir.Node, Lookup], ShapeValue | None]] = {
    "Shape": _shape,
    "Gather": _gather,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Cast": _cast,
    "Slice": _slice,
    "Identity": _same,
    "Add": _arithmetic,
    "Sub": _arithmetic,
    "Mul": _arithmetic,
    "Div": _arithmetic,
}


class FoldShapes:
    """Replaces values that follow from known shapes by constants, in the main graph.

    An integer tensor whose elements are all known becomes an initializer. The shape of a Reshape
    may have free elements: 0 stands for the input's own dimension at the same place, −1 for one
    other dimension. A −1 with only one possible value becomes that number.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """The model and whether anything was folded; needs inferred shapes."""
        editor = Editor(model.graph)
        known = evaluate_shapes(model.graph)
        modified = False
        for value, found in known.items():
            modified |= _fold_numbers(editor, value, found)
        for node in model.graph:
            modified |= _fold_reshape(editor, node, known)
        return PassResult(model, modified)


def _fold_numbers(editor: Editor, value: ir.Value, found: ShapeValue) -> bool:
    numbers = found.numbers
    if numbers is None or not value.uses() or value.is_graph_output() or value.dtype is None:
        return False
    array = np.array(numbers, dtype=value.dtype.numpy())
    new = editor.initializer(str(value.name), array.reshape(() if found.scalar else -1))
    value.replace_all_uses_with(new)
    return True


def _fold_reshape(editor: Editor, node: ir.Node, known: dict[ir.Value, ShapeValue]) -> bool:
    target = input_at(node, 1)
    if not is_op(node, "Reshape") or target is None or node.attributes.get_int("allowzero"):
        return False
    given = constant(target)
    found = known.get(target)
    if given is not None and given.ndim == 1:
        elements: tuple[Dim, ...] = tuple(int(size) for size in given)
    elif found is not None:
        elements = found.elements
    else:
        return False
    numbers = _as_constant(elements, dims_of(node.inputs[0]) or ())
    if numbers is None or (given is not None and numbers == given.tolist()):
        return False
    shape = editor.initializer(f"{node.name}_shape", np.array(numbers, dtype=np.int64))
    node.replace_input_with(1, shape)
    return True


def _as_constant(elements: tuple[Dim, ...], dims: tuple[Dim, ...]) -> list[int] | None:
    """The shape as numbers, 0 and at most one −1; None where that is not possible."""
    elements = _without_rest(elements, dims)
    numbers: list[int] = []
    for index, element in enumerate(elements):
        if isinstance(element, int):
            numbers.append(element)
        elif element is not None and index < len(dims) and dims[index] == element:
            numbers.append(0)
        else:
            numbers.append(-1)
    return numbers if numbers.count(-1) <= 1 else None


def _without_rest(elements: tuple[Dim, ...], dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Replace −1 by its size, where the numbers of elements on both sides determine it."""
    if elements.count(-1) != 1 or not dims:
        return elements
    place = elements.index(-1)
    copied = tuple(
        dims[i] if element == 0 and i < len(dims) else element for i, element in enumerate(elements)
    )
    others = [element for element in copied if element != -1]
    free, free_others = _free(dims), _free(others)
    size, size_others = _numbers(dims), _numbers(others)
    if None in free or None in free_others or size == 0 or size_others == 0:
        return elements
    if sorted(free) == sorted(free_others) and size % size_others == 0:  # type: ignore[type-var]
        return (*elements[:place], size // size_others, *elements[place + 1 :])
    if len(free) == 1 and not free_others and size == size_others:
        return (*elements[:place], free[0], *elements[place + 1 :])
    return elements


def _free(dims: Sequence[Dim]) -> list[str | None]:
    return [dim for dim in dims if not isinstance(dim, int)]


def _numbers(dims: Sequence[Dim]) -> int:
    return prod(dim for dim in dims if isinstance(dim, int))
