"""Where the student is compared with the teacher: the float outputs, before softmax."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxq.graph.cut import moved_by_inputs, read_by
from onnxq.graph.facts import is_op

_KEEPS_VALUES = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast")

_DECIDES = ("ArgMax", "ArgMin", "TopK")
"""Operators that give places in a float tensor."""

_CHOOSES = ("NonMaxSuppression", "NonZero", "Compress", "Unique")
"""Operators whose result has as many rows as they find."""


def find_logits(model: ir.Model) -> list[str]:
    """The names of the tensors that learning matches, one per float output, in order.

    An output that is a softmax or log-softmax is replaced by what enters it (FAT compares
    logits), one whose rows are chosen by what they hold (after NonMaxSuppression) by what they are
    chosen from. Outputs that are not floats (a class index) are passed over, and so are those that
    no node computes from what is fed and those without elements. Where none is left, what the class
    indices are found in is matched; the list is empty where there is no such tensor either.
    """
    moved = moved_by_inputs(model.graph)
    chosen = chosen_by_content(model.graph)
    outputs = [v for v in model.graph.outputs if v in moved and v.producer() is not None]
    found = [v for v in outputs if _is_float(v) and not _is_empty(v)]
    if not found:
        found = [scores for v in outputs if (scores := _decided_by(v)) is not None]
    if not found:
        found = [v for v in outputs if v in chosen]
    names: dict[str, None] = {}
    for value in found:
        sources = [v for v in _sources(value, chosen) if v in moved and v.producer() is not None]
        names |= dict.fromkeys(str(_before_softmax(each).name) for each in sources)
    return list(names)


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT


def _is_empty(value: ir.Value) -> bool:
    return value.shape is not None and 0 in tuple(value.shape)


def compared_tensors(model: ir.Model) -> list[str]:
    """The names of the tensors by which a quantized model is measured, in order.

    All outputs that depend on what is fed, but for those whose rows are chosen by what they hold:
    what they are chosen from stands for them.
    """
    moved, chosen = moved_by_inputs(model.graph), chosen_by_content(model.graph)
    outputs = [value for value in model.graph.outputs if value in moved]
    names = [str(value.name) for value in outputs if value not in chosen]
    more = find_logits(model) if len(names) < len(outputs) else []
    return list(dict.fromkeys([*names, *more]))


def chosen_by_content(graph: ir.Graph) -> set[ir.Value]:
    """The values of which the student may have other rows than the teacher."""
    found: set[ir.Value] = set()
    for node in graph:
        if is_op(node, *_CHOOSES) or any(value in found for value in read_by(node)):
            found.update(node.outputs)
    return found


def _sources(value: ir.Value, chosen: set[ir.Value]) -> Iterator[ir.Value]:
    """The value itself, or the float tensors that its rows are chosen from."""
    waiting, seen = [value], {value}
    while waiting:
        each = waiting.pop()
        node = each.producer()
        if each not in chosen or node is None:
            if _is_float(each):
                yield each
            continue
        fresh = [other for other in read_by(node) if other not in seen]
        seen.update(fresh)
        waiting += reversed(fresh)


def _decided_by(output: ir.Value) -> ir.Value | None:
    """The float tensor in which an output of integers says places."""
    node = _skip(output).producer()
    if node is None or not is_op(node, *_DECIDES):
        return None
    scores = node.inputs[0]
    computed = scores is not None and scores.producer() is not None and _is_float(scores)
    return scores if computed else None


def _before_softmax(output: ir.Value) -> ir.Value:
    node = _skip(output).producer()
    if node is None or not is_op(node, "Softmax", "LogSoftmax"):
        return output
    assert node.inputs[0] is not None
    return output if node.inputs[0].producer() is None else node.inputs[0]


def _skip(value: ir.Value) -> ir.Value:
    """What holds the same numbers before they were reshaped or cast."""
    node = value.producer()
    while node is not None and is_op(node, *_KEEPS_VALUES) and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value
