"""What the outputs of a model mean, found from the nodes that write them and from their shapes.

| kind | output |
|---|---|
| classes | (N, classes): a softmax, what an ArgMax reads, or the sums of a layer |
| embeddings | vectors along the last axis, behind a normalisation or a mean |
| sequences | (N, T, symbols) or (T, N, symbols): a softmax or the sums of a layer at each step |
| scores | (N, boxes, channels) or (N, channels, boxes): sigmoids, alone or beside coordinates |
| mask | (N, C, H, W): a sigmoid, or a softmax over C |
| image | (N, C, H, W) of four channels at most: any other values |
| other | anything else |

Outputs that are not floats hold classes where they depend on floats, as the result of an ArgMax
does; token numbers that are handed on do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from onnxq.errors import RecipeError
from onnxq.graph.cut import ancestors
from onnxq.graph.facts import computed_from_constants, is_constant, is_op, rank, static_dim
from onnxq.graph.operators import WEIGHT_OPERATORS

Kind = Literal["classes", "embeddings", "sequences", "scores", "mask", "image", "other"]

_KEEPS_VALUES = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Dropout",
                 "QuantizeLinear", "DequantizeLinear")  # fmt: skip
_SOFTMAX = ("Softmax", "LogSoftmax")
_DECIDES = (*_SOFTMAX, "ArgMax", "TopK", "Hardmax")

_KEEPS_ORDER = (
    "Add", "Sub", "Mul", "Div", "BatchNormalization", "Relu", "Clip", "LeakyRelu", "PRelu",
    "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Neg", "GlobalAveragePool", "AveragePool",
    "GlobalMaxPool", "MaxPool", "ReduceMean", "ReduceMax", "ReduceSum", "Sum", "Concat", "Slice",
)  # fmt: skip
"""What may stand between a classifier's last layer and its output."""

_NORMALISES = ("LayerNormalization", "LpNormalization")
_SUMS = ("ReduceL2", "ReduceSum", "ReduceMean", "ReduceSumSquare")
_SELECTS = ("Concat", "Gather", "Slice", "Expand", "Tanh", "ReduceMean")


@dataclass(frozen=True)
class Meaning:
    """What an output holds.

    Attributes:
        kind: as in the table at the head of this module.
        axis: the samples' axis of a sequence, or the channels' axis of scores; 0 for other kinds.
        scores: first and last channel with scores, the latter excluded; None where all are.
    """

    kind: Kind
    axis: int = 0
    scores: tuple[int, int] | None = None


OTHER = Meaning("other")

AUTO = "auto"
"""The task is found from the outputs."""

FITS = {
    "classes": "classes are (samples, classes), or integers",
    "detection": "scores are (samples, boxes, classes) behind Sigmoid or Softmax",
    "embeddings": "embeddings are vectors",
    "sequences": "sequences are (samples, steps, symbols) or (steps, samples, symbols)",
    "dense": "masks and images are (samples, channels, height, width)",
}
"""What the outputs for each task look like."""

BOX = 4
"""Numbers of a box."""

IMAGE_CHANNELS = (1, 2, 3, 4)
"""Channels of a map of numbers or colours; inner tensors and caches have more."""


def find_meanings(graph: ir.Graph, task: str = AUTO) -> dict[str, Meaning]:
    """The meaning of each output by its name.

    Args:
        graph: the model's.
        task: of the model, where a user says so; outputs that can't have its meaning are 'other'.
    """
    values = {str(value.name): value for value in graph.outputs}
    found = {name: _meaning(value) for name, value in values.items() if _is_float(value)}
    if len(found) == 1 and Meaning("scores", axis=2) in found.values():
        # Scores without boxes beside them are no detector's.
        found = dict.fromkeys(found, OTHER)
    if any(rank(values[name]) == 3 and static_dim(values[name], 2) == BOX for name in found):
        # Each box has a distribution over classes.
        turned = Meaning("scores", axis=2)
        found = {k: turned if v.kind == "sequences" else v for k, v in found.items()}
    for name, value in values.items():
        computed = (_is_float(v) and v.producer() for v in ancestors(graph, [value]))
        found.setdefault(name, Meaning("classes") if any(computed) else OTHER)
    if task == AUTO:
        return found
    return {name: _stated(task, value, found[name]) for name, value in values.items()}


def check_task(graph: ir.Graph, task: str) -> None:
    """Raises RecipeError where no output of a model fits the task that a user states."""
    meanings = find_meanings(graph, task).values()
    if task not in (AUTO, "other") and all(meaning == OTHER for meaning in meanings):
        raise RecipeError(
            f"The option 'task' is '{task}', and no output of the model fits it: {FITS[task]}; "
            "leave it out, or give 'other'."
        )


def _stated(task: str, value: ir.Value, found: Meaning) -> Meaning:
    """The meaning of an output of a model with a stated task, where `found` is what it seems."""
    count = rank(value)
    if not _is_float(value):
        return found if task == "classes" else OTHER
    if task == "classes" and count in (2, None):
        return Meaning("classes")
    if task == "embeddings" and count != 1:
        return Meaning("embeddings")
    if task == "sequences" and count == 3:
        return _sequence(value)
    if task == "detection" and count == 3:
        ends = is_op(_skip(value, "Transpose").producer(), "Sigmoid", *_SOFTMAX)
        return Meaning("scores", axis=2) if ends else found if found.kind == "scores" else OTHER
    if task == "dense" and count == 4:
        return found if found.kind == "mask" else Meaning("image")
    return OTHER


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def decides(value: ir.Value, task: str = AUTO) -> bool:
    """Whether a tensor (N, classes) holds the probabilities or logits of classes."""
    if task != AUTO:
        return task == "classes"
    if any(is_op(reader, *_DECIDES) for reader in _readers(value)):
        return True
    node = _skip(value).producer()
    if is_op(node, *_SOFTMAX) or _is_written_out_softmax(node):
        return True
    return _is_layer_result(value, _KEEPS_ORDER)


def _is_written_out_softmax(node: ir.Node | None) -> bool:
    """Whether a node divides powers of e, as by their sum."""
    if node is None or not is_op(node, "Div") or node.inputs[0] is None:
        return False
    return is_op(node.inputs[0].producer(), "Exp")


def _meaning(value: ir.Value) -> Meaning:
    count = rank(value)
    if _is_embedding(value) and count in (2, 3):
        return Meaning("embeddings")
    if count is None or (count == 2 and static_dim(value, 1) != 1):
        return Meaning("classes") if decides(value) else OTHER
    node = _skip(value, "Transpose").producer()
    if count == 3:
        if (scores := _scores(value, node)) is not None:
            return scores
        if is_op(node, *_SOFTMAX) or _is_layer_result(value, ("Add",), ("Gemm", "MatMul")):
            return _sequence(value)
    spatial = count == 4 and all(static_dim(value, axis) != 1 for axis in (2, 3))
    if spatial and is_op(node, "Sigmoid", *_SOFTMAX):
        return Meaning("mask")
    return Meaning("image") if spatial and static_dim(value, 1) in IMAGE_CHANNELS else OTHER


def _sequence(value: ir.Value) -> Meaning:
    """Sequences: of a fixed number of steps, the samples are along the second axis."""
    first, second = static_dim(value, 0), static_dim(value, 1)
    turned = first not in (None, 1) and second in (None, 1)
    return Meaning("sequences", axis=1 if turned else 0)


def _scores(value: ir.Value, node: ir.Node | None) -> Meaning | None:
    """The scores of a detector: a sigmoid, or one joined with coordinates."""
    if is_op(node, "Sigmoid"):
        return Meaning("scores", axis=2)
    if node is None or not is_op(node, "Concat") or value.producer() is not node:
        return None
    axis, start = node.attributes.get_int("axis", 0) % 3, 0
    for part in node.inputs:
        size = static_dim(part, axis)
        if size is None or part is None:
            return None
        if is_op(_skip(part, "Transpose").producer(), "Sigmoid"):
            return Meaning("scores", axis, (start, start + size))
        start += size
    return None


def _is_embedding(value: ir.Value) -> bool:
    """Whether a value is normalised, or a mean of many vectors that nothing decides on."""
    node = _skip(value).producer()
    while node is not None and is_op(node, *_SELECTS, *_KEEPS_VALUES):
        source = node.inputs[0]
        node = None if source is None else source.producer()
    if node is None:
        return False
    if is_op(node, *_NORMALISES):
        return True
    if _is_written_out_softmax(node):
        return False
    return is_op(node, "Div") and any(is_op(each, *_SUMS) for each in _before(node.inputs[1]))


_NEAR = 6
"""Nodes between a division and the sum that it divides by, at most."""


def _before(value: ir.Value | None) -> Iterator[ir.Node]:
    """The nodes that lead to a value by their first inputs."""
    for _ in range(_NEAR):
        node = None if value is None else value.producer()
        if node is None:
            return
        yield node
        value = node.inputs[0] if node.inputs else None


def _is_layer_result(
    value: ir.Value,
    between: tuple[str, ...],
    layers: tuple[str, ...] = (*WEIGHT_OPERATORS, "Einsum"),
) -> bool:
    """Whether a layer with constant weights gives the value, behind such operators at most."""
    waiting, seen = [value], {value}
    while waiting:
        node = _skip(waiting.pop(), "Transpose").producer()
        if node is None:
            continue
        if is_op(node, *layers) or node.domain == "ai.onnx.ml":
            weights = (is_constant(read) or computed_from_constants(read) for read in node.inputs)
            return bool(node.domain) or any(weights)
        if is_op(node, *between):
            divided = is_op(node, "Div") and not is_constant(node.inputs[1])
            fresh = {v for v in node.inputs if v is not None and not divided} - seen
            seen |= fresh
            waiting += fresh
    return False


def _skip(value: ir.Value, *more: str) -> ir.Value:
    """The value before it was reshaped or cast."""
    node = value.producer()
    while node is not None and is_op(node, *_KEEPS_VALUES, *more) and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _readers(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that read a value, reshaped or cast at most."""
    for node in value.consumers():
        if is_op(node, *_KEEPS_VALUES):
            yield from _readers(node.outputs[0])
        else:
            yield node
