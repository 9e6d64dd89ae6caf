"""The difference of two models' outputs, in one streaming pass over samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import tee

import numpy as np
import onnx_ir as ir

from onnxq.graph.meanings import Meaning
from onnxq.numerics.channels import ChannelSums
from onnxq.numerics.distances import (
    Noise,
    confidence_drop,
    kl_divergence,
    log_probabilities,
    look_like_probabilities,
)
from onnxq.options.table import EVALUATION_BATCH
from onnxq.runtime.dataset import Samples
from onnxq.runtime.session import Arrays, SessionPool
from onnxq.verify.task import TaskSums, find_task

_KEEPS_VALUES = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast")


@dataclass(frozen=True)
class Comparison:
    """The differences of a candidate's outputs from a reference's.

    Attributes:
        samples: number of samples compared.
        agreement: share of equal decisions, 0 to 1; None where no output is a decision.
        kl: mean KL(reference || candidate) in nats; None where no output has classes.
        estimated_drop: mean of p_T(c_T) - p_T(c_S) in percentage points, or None.
        estimated_drop_error: one standard error of it, in percentage points, or None.
        sqnr_db: 10 log10(sum y^2 / sum (y - y')^2) of each float output, within +-200. Where its
            channels mean different things (boxes beside scores), that of the worse group.
        incomparable: names of outputs whose shapes differ between the two models.
        task: what the outputs are for: 'classes', 'detection', 'embeddings', 'sequences', 'dense'
            or 'other'.
        task_metrics: the task's own metrics by name, other than those above.
    """

    samples: int
    agreement: float | None
    kl: float | None
    estimated_drop: float | None
    estimated_drop_error: float | None
    sqnr_db: dict[str, float]
    incomparable: list[str] = field(default_factory=list)
    task: str = ""
    task_metrics: dict[str, float] = field(default_factory=dict)


def probability_outputs(model: ir.Model) -> frozenset[str]:
    """Names of the graph outputs that are a softmax, reshaped at most."""
    names = set()
    for output in model.graph.outputs:
        node = output.producer()
        while node is not None and node.op_type in _KEEPS_VALUES and node.inputs[0] is not None:
            node = node.inputs[0].producer()
        if node is not None and node.op_type == "Softmax":
            names.add(str(output.name))
    return frozenset(names)


def compare_outputs(
    reference: SessionPool,
    candidate: SessionPool,
    samples: Samples,
    probabilities: Collection[str] | None = None,
    meanings: Mapping[str, Meaning] | None = None,
    *,
    batch_size: int = EVALUATION_BATCH,
    on_batch: Callable[[int], None] | None = None,
) -> Comparison:
    """Run both models on the samples and compare their outputs; only sums are kept.

    Args:
        reference: the original; its outputs are compared, and its values are the truth.
        candidate: a model with the same inputs and outputs.
        samples: the samples for both.
        probabilities: names of outputs that are a softmax already (`probability_outputs`); None
            decides by their values.
        meanings: what the outputs mean; those without one hold classes where their shape allows it.
        batch_size: samples per run.
        on_batch: called with the number of samples done.
    """
    comparer = Comparer(reference.outputs, probabilities, meanings)
    size = samples.batch or batch_size
    pairs = paired_outputs(reference, candidate, samples, size)
    for done, (expected, found) in enumerate(pairs, start=1):
        comparer.add(expected, found)
        if on_batch is not None:
            on_batch(min(done * size, samples.count))
    return comparer.comparison(samples.count)


def paired_outputs(
    reference: SessionPool, candidate: SessionPool, samples: Samples, batch_size: int
) -> Iterator[tuple[Arrays, Arrays]]:
    """The outputs of both models, batch by batch; each sample is read once."""
    left, right = tee(samples.batches(batch_size))
    return zip(reference.map(left), candidate.map(right), strict=True)


class Comparer:
    """Accumulates the differences of two models' outputs.

    Args:
        outputs: names of the outputs.
        probabilities: as in `compare_outputs`.
        meanings: as in `compare_outputs`.
    """

    def __init__(
        self,
        outputs: Sequence[str],
        probabilities: Collection[str] | None = None,
        meanings: Mapping[str, Meaning] | None = None,
    ) -> None:
        self._meanings = meanings or {}
        self._sums = {name: _OutputSums(self._decides(name)) for name in outputs}
        self._task = TaskSums(self._meanings)
        self._probabilities = probabilities

    def _decides(self, name: str) -> bool:
        meaning = self._meanings.get(name)
        return meaning is None or meaning.kind == "classes"

    def add(self, expected: Arrays, found: Arrays) -> None:
        """Add one batch."""
        known = self._probabilities
        for name, total in self._sums.items():
            y, y_hat = expected[name], found[name]
            # Sequences and maps of ai.onnx.ml models are no arrays.
            if not isinstance(y, np.ndarray) or not isinstance(y_hat, np.ndarray):
                continue
            if y.shape != y_hat.shape:
                total.incomparable = True
            elif y.dtype.kind == "f":
                total.add(y, y_hat, None if known is None else name in known)
                self._task.add(name, y, y_hat)
            else:
                total.add_labels(y, y_hat)

    def comparison(self, samples: int) -> Comparison:
        """The metrics so far."""
        return replace(
            _comparison(self._sums, samples),
            task=find_task(self._meanings) if self._meanings else "",
            task_metrics=self._task.metrics(),
        )


class _OutputSums:
    """Running sums of one output.

    Args:
        decides: whether it may hold classes.
    """

    def __init__(self, decides: bool) -> None:
        self._decides = decides
        self.incomparable = False
        self.noise = Noise()
        self.channels: ChannelSums | None = ChannelSums()
        self.is_float = False
        self.labels = self.equal_labels = 0
        self.rows = self.equal = 0
        self.kl = self.drop = self.squared_drop = 0.0
        self._probabilities: bool | None = None

    def add(self, y: np.ndarray, y_hat: np.ndarray, probabilities: bool | None) -> None:
        self.is_float = True
        self.noise.add(y, y_hat)
        finite = bool(np.isfinite(y).all() and np.isfinite(y_hat).all())
        if not finite:
            self.channels = None
        if self.channels is not None:
            self.channels.add(y, np.subtract(y, y_hat, dtype=np.float64))
        matrix = self._decides and y.ndim == 2
        if matrix and y.shape[1] >= 2 and finite:
            if self._probabilities is None:
                given = probabilities is not None
                self._probabilities = probabilities if given else look_like_probabilities(y)
            self._add_rows(y, y_hat, bool(self._probabilities))

    def _add_rows(self, y: np.ndarray, y_hat: np.ndarray, probabilities: bool) -> None:
        teacher, student = (log_probabilities(rows, probabilities) for rows in (y, y_hat))
        decisions, others = y.argmax(axis=1), y_hat.argmax(axis=1)
        drop = confidence_drop(teacher, decisions, others)
        self.rows += len(y)
        self.equal += int((decisions == others).sum())
        self.kl += float(kl_divergence(teacher, student).sum())
        self.drop += float(drop.sum())
        self.squared_drop += float(np.square(drop).sum())

    def sqnr_db(self) -> float:
        """The SQNR of the output, or of the worse of the groups of its channels."""
        groups = None if self.channels is None else self.channels.groups()
        if self.channels is None or groups is None:
            return self.noise.sqnr_db()
        sums = [each(groups.axis) for each in (self.channels.squares, self.channels.errors)]
        parts = zip(*(groups.sums(each) for each in sums), strict=True)
        return min(Noise(signal, noise).sqnr_db() for signal, noise in parts)

    def add_labels(self, y: np.ndarray, y_hat: np.ndarray) -> None:
        if not self._decides:
            return
        self.labels += y.size
        self.equal_labels += int((y == y_hat).sum())


def _comparison(sums: dict[str, _OutputSums], samples: int) -> Comparison:
    classified = [total for total in sums.values() if total.rows and not total.incomparable]
    rows = sum(total.rows for total in classified)
    agreement = kl = drop = error = None
    if rows:
        agreement = sum(total.equal for total in classified) / rows
        kl = max(sum(total.kl for total in classified) / rows, 0.0)
        mean = sum(total.drop for total in classified) / rows
        variance = max(sum(total.squared_drop for total in classified) / rows - mean**2, 0.0)
        drop, error = 100 * mean, 100 * math.sqrt(variance / rows)
    elif labels := sum(total.labels for total in sums.values()):
        agreement = sum(total.equal_labels for total in sums.values()) / labels
    return Comparison(
        samples=samples,
        agreement=agreement,
        kl=kl,
        estimated_drop=drop,
        estimated_drop_error=error,
        sqnr_db={
            name: total.sqnr_db()
            for name, total in sums.items()
            if total.is_float and not total.incomparable
        },
        incomparable=[name for name, total in sums.items() if total.incomparable],
    )
