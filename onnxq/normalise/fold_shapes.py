"""Shape arithmetic that exporters leave behind, folded where the batch alone is free."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import constant, input_at, int_attribute, is_op
from onnxq.normalise.passes import PassResult
from onnxq.normalise.shape_values import Dim, ShapeValue, dims_of, evaluate_shapes


class FoldShapes:
    """Replaces what follows from known shapes by constants, in the main graph.

    An integer tensor whose elements are all known becomes an initializer. The shape given
    to a Reshape may have free elements: 0 stands for one that is the input's own dimension
    at the same place, −1 for one other; a −1 that can only be a number becomes that number.
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
    if not is_op(node, "Reshape") or target is None or int_attribute(node, "allowzero", 0):
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
    """The shape as numbers, 0 and at most one −1; None where that can't be said."""
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
    """Say what −1 stands for, where the numbers of elements on both sides tell."""
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
