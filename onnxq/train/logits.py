"""The tensors on which student and teacher are compared: the float outputs, before softmax."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.graph.cut import dependents, moved_by_inputs
from onnxq.graph.facts import is_op, reads

_KEEPS_VALUES = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast")

_DECIDES = ("ArgMax", "ArgMin", "TopK")
"""Operators whose outputs are indices into a float tensor."""

_CHOOSES = ("NonMaxSuppression", "NonZero", "Compress", "Unique")
"""Operators whose number of output rows depends on the values."""


def find_logits(model: ir.Model) -> list[str]:
    """Names of the tensors that training matches, one per float output, in order.

    - A softmax or log-softmax output is replaced by its input (FAT compares logits).
    - An output whose rows are selected by their values (after NonMaxSuppression) is replaced by the
      tensors that they are selected from.
    - Outputs that are not floats (a class index), that no input can change, or that have no
      elements are left out.
    - Where nothing is left, the scores that class indices are found in are matched. Where there are
      none either, the list is empty.
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
    """Names of the tensors on which a quantized model is measured, in order.

    These are the outputs that depend on an input. Outputs whose rows are selected by their values
    are replaced by the tensors that they are selected from.
    """
    moved, chosen = moved_by_inputs(model.graph), chosen_by_content(model.graph)
    outputs = [value for value in model.graph.outputs if value in moved]
    names = [str(value.name) for value in outputs if value not in chosen]
    more = find_logits(model) if len(names) < len(outputs) else []
    return list(dict.fromkeys([*names, *more]))


def chosen_by_content(graph: ir.Graph) -> set[ir.Value]:
    """Values whose rows are selected by content: student and teacher may have different rows."""
    return dependents(graph, (v for node in graph if is_op(node, *_CHOOSES) for v in node.outputs))


def _sources(value: ir.Value, chosen: set[ir.Value]) -> Iterator[ir.Value]:
    """The value itself, or the float tensors that its rows are selected from."""
    waiting, seen = [value], {value}
    while waiting:
        each = waiting.pop()
        node = each.producer()
        if each not in chosen or node is None:
            if _is_float(each):
                yield each
            continue
        fresh = [other for other in reads(node) if other not in seen]
        seen.update(fresh)
        waiting += reversed(fresh)


def _decided_by(output: ir.Value) -> ir.Value | None:
    """The float tensor that an integer output holds indices into; None where there is none."""
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
    """The value before it was reshaped or cast."""
    node = value.producer()
    while node is not None and is_op(node, *_KEEPS_VALUES) and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def require_logits(model: ir.Model, path: Path) -> list[str]:
    """The names of the tensors that learning matches.

    Args:
        model: the normalised model.
        path: its file, for the error.

    Raises:
        ModelError: there are none.
    """
    if found := find_logits(model):
        return found
    raise ModelError(
        f"'{path}' has nothing to match: no float output depends on its inputs; "
        "export the model with its scores, those that classes are found in, as an output."
    )
