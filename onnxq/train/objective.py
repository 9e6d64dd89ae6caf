"""Training objectives: the tensors compared, the loss graph, and how it is read as a score.

A loss graph returns two sums over the samples of a batch, so that batches and shards add up: the
loss, and for a classifier the number of samples on which it makes the teacher's decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from onnxq.errors import ModelError
from onnxq.graph.cut import dependents, moved_by_inputs
from onnxq.graph.editor import add_initializer
from onnxq.graph.facts import is_op, reads, values_by_name

LOSS = "onnxq.loss"
"""Name of the loss output: a float32 scalar, the sum over the samples of a batch."""
AGREES = "onnxq.agrees"
"""Name of a classifier's second output: on how many samples the decision is the teacher's."""

Weight = float | np.ndarray
"""The factor of a tensor in the loss; an array, broadcast to it, where its channels differ."""


def target_name(logits: str) -> str:
    """The name of the graph input that takes the teacher's values of a tensor."""
    return f"{logits}.target"


def attach_loss(
    student: ir.Model, weights: Mapping[str, Weight], decision: str | None = None
) -> ir.Model:
    """A copy of the student with the loss as its output.

    loss = sum_k sum weight_k (student_k - target_k)^2. It is a sum, not a mean, so that the
    losses of a batch's shards add up.

    Args:
        student: the student; it isn't changed.
        weights: the factor of each compared tensor, or of its channels, by name.
        decision: the tensor whose largest entry is the decision; where given, the number of equal
            decisions is a second output.
    """
    model = student.clone(deep_copy=False)
    graph = model.graph
    values = values_by_name(graph)
    body = tape.Tape()
    terms: list[ir.Value] = []
    decides: tuple[ir.Value, ir.Value] | None = None
    # Initializers, not Constant nodes, which a cut of the graph would take for tensors.
    two = add_initializer(graph, f"{LOSS}.two", np.array(2.0, np.float32))
    for name, weight in weights.items():
        value = values[name]
        target = ir.val(target_name(name), ir.DataType.FLOAT, free_shape(value))
        graph.inputs.append(target)
        squared = body.op("Pow", [body.op("Sub", [value, target]), two])
        factor = add_initializer(graph, f"{LOSS}.weight.{name}", np.array(weight, np.float32))
        if isinstance(weight, np.ndarray):
            terms.append(_sum(body, body.op("Mul", [squared, factor])))
        else:
            terms.append(body.op("Mul", [_sum(body, squared), factor]))
        if name == decision:
            decides = value, target
    total = terms[0]
    for term in terms[1:]:
        total = body.op("Add", [total, term])
    return finished(model, body, total, decides)


def _sum(body: tape.Tape, value: ir.Value) -> ir.Value:
    return body.op("ReduceSum", [value], {"keepdims": 0})


def finished(
    model: ir.Model,
    body: tape.Tape,
    loss: ir.Value,
    decides: tuple[ir.Value, ir.Value] | None = None,
) -> ir.Model:
    """The model with the nodes of the tape added and the loss as its output; changed in place.

    Args:
        model: the copy of a student that the nodes of the tape read.
        body: the nodes.
        loss: their result, a scalar.
        decides: a classifier's logits and their target, (samples, classes); where given, the number
            of equal decisions is a second output.
    """
    outputs = {LOSS: loss}
    if decides is not None:
        outputs[AGREES] = _agreement(body, *decides)
    for name, value in outputs.items():
        value.name, value.type, value.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    for i, node in enumerate(body.nodes):
        node.name = f"{LOSS}.{i}"
        for output in node.outputs:
            output.name = output.name or f"{LOSS}.{i}.value"
    model.graph.extend(body.nodes)
    model.graph.outputs[:] = list(outputs.values())
    return model


def _agreement(body: tape.Tape, logits: ir.Value, target: ir.Value) -> ir.Value:
    decisions = [body.op("ArgMax", [value], {"axis": 1}) for value in (logits, target)]
    equal = body.op("Cast", [body.op("Equal", decisions)], {"to": ir.DataType.FLOAT})
    return body.op("ReduceSum", [equal], {"keepdims": 0})


def free_shape(value: ir.Value) -> ir.Shape | None:
    """A shape of the same rank with free dimensions: an inferred size may be one of several."""
    return None if value.shape is None else ir.Shape([None] * len(value.shape))


class Objective(Protocol):
    """A loss, and how it is read as a score."""

    @property
    def unit(self) -> str:
        """The name of the score's unit, for messages."""

    def attach(self, student: ir.Model) -> ir.Model:
        """A copy of the student with the loss as its output."""

    def score(self, loss: float, samples: int) -> float:
        """The score from a loss summed over so many samples; lower is better, 0 at the teacher."""

    def slope(self, loss: float, samples: int) -> float:
        """The derivative of the score with respect to the summed loss."""


@dataclass(frozen=True)
class OutputMatching:
    """RMSE of the logits relative to the teacher's (FAT; Thonglek et al.), for any model.

    Attributes:
        weights: the factor of each compared tensor, or of its channels, by name.
        decision: the tensor whose largest entry is a classifier's decision, or None.
    """

    weights: Mapping[str, Weight]
    decision: str | None = None
    unit: str = "error"

    def attach(self, student: ir.Model) -> ir.Model:
        """A copy of the student with sum_k sum weight_k (student_k - target_k)^2."""
        return attach_loss(student, self.weights, self.decision)

    def score(self, loss: float, samples: int) -> float:
        """The root of the mean over samples."""
        return float(np.sqrt(loss / max(samples, 1)))

    def slope(self, loss: float, samples: int) -> float:
        """1 / (2 * RMSE * samples)."""
        return 1.0 / max(2.0 * self.score(loss, samples) * samples, 1e-12)


@dataclass(frozen=True)
class Distillation:
    """KL(p_T || p_S) of a classifier's softmax outputs at temperature 1, in nats.

    This is H_CE(softmax(y_S), softmax(y_T)) of Li et al., DFQF, 2020, equation 2, less the
    teacher's entropy, which no student can change. A perfect student has a score of 0.

    Attributes:
        logits: the compared tensor, (samples, classes), maybe with trailing dimensions of 1.
    """

    logits: str
    unit: str = "KL divergence"

    def attach(self, student: ir.Model) -> ir.Model:
        """A copy of the student with sum over samples and classes of p_T (log p_T - log p_S)."""
        model = student.clone(deep_copy=False)
        value = next(v for node in model.graph for v in node.outputs if v.name == self.logits)
        target = ir.val(target_name(self.logits), ir.DataType.FLOAT, free_shape(value))
        model.graph.inputs.append(target)
        body = tape.Tape()
        mine, theirs = (_log_softmax(body, each) for each in (value, target))
        difference = body.op("Sub", [theirs, mine])
        products = body.op("Mul", [body.op("Exp", [theirs]), difference])
        total = body.op("ReduceSum", [products], {"keepdims": 0})
        return finished(model, body, total, (value, target))

    def score(self, loss: float, samples: int) -> float:
        """The mean over samples."""
        return max(loss, 0.0) / max(samples, 1)

    def slope(self, loss: float, samples: int) -> float:
        """1 / samples."""
        return 1.0 / max(samples, 1)


def choose_objective(matching: OutputMatching, *, distil: bool) -> Objective:
    """`Distillation` where it is wanted and the model is a classifier, else `matching`."""
    if distil and matching.decision is not None:
        return Distillation(matching.decision)
    return matching


def _log_softmax(body: tape.Tape, logits: ir.Value) -> ir.Value:
    return body.op("LogSoftmax", [body.op("Flatten", [logits], {"axis": 1})], {"axis": -1})


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
