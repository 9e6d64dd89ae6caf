"""Training objectives: how a loss is attached to a student, and read as a score.

A loss graph returns two sums over the samples of a batch, so that batches and shards add up: the
loss, and for a classifier the number of samples on which it makes the teacher's decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from onnxq.train.loss import attach_loss, finished, free_shape, target_name


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
        weights: the factor of each compared tensor, by name.
        decision: the tensor whose largest entry is a classifier's decision, or None.
    """

    weights: Mapping[str, float]
    decision: str | None = None
    unit: str = "error"

    def attach(self, student: ir.Model) -> ir.Model:
        """A copy of the student with sum_k weight_k * sum (student_k - target_k)^2."""
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
