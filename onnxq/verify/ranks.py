"""Top-1 and top-5 against labels, and the paired difference of two models."""

from __future__ import annotations

import math

import numpy as np

from onnxq.errors import DataError, ModelError
from onnxq.runtime.session import Arrays

TOP = 5


class Ranks:
    """Counts the samples that a model gets right, batch by batch.

    Args:
        labels: class indices of all samples, in order.
    """

    def __init__(self, labels: np.ndarray) -> None:
        self._labels = labels
        self._top1 = np.zeros(len(labels), bool)
        self._top5 = np.zeros(len(labels), bool)
        self._classes = 0
        self.done = 0

    def add(self, outputs: Arrays) -> None:
        """Add the outputs of the next batch.

        Raises:
            ModelError: no output has classes.
            DataError: a label is not one of the model's classes.
        """
        scores = _scores(outputs)
        self._classes = scores.shape[1]
        labels = self._labels[self.done : self.done + len(scores)]
        if labels.size and not 0 <= labels.min() <= labels.max() < self._classes:
            raise DataError(
                f"The label '{labels.max()}' is not a class of the model, which has "
                f"{self._classes}; labels count from 0."
            )
        own = scores[np.arange(len(labels)), labels][:, None]
        # Of equal scores the first wins, as in argmax.
        ahead = (scores > own) | (
            (scores == own) & (np.arange(self._classes)[None] < labels[:, None])
        )
        rank = ahead.sum(axis=1)
        self._top1[self.done : self.done + len(labels)] = rank == 0
        self._top5[self.done : self.done + len(labels)] = rank < TOP
        self.done += len(labels)

    @property
    def right(self) -> np.ndarray:
        """Whether each sample's decision is its label: bool `(done,)`."""
        return self._top1[: self.done]

    def metrics(self) -> dict[str, float | None]:
        """`top1` and `top5` in percent, and `error`, one standard error of top-1 in points."""
        if not self.done:
            return {"top1": None, "top5": None, "error": None}
        top1 = float(self.right.mean())
        return {
            "top1": 100 * top1,
            "top5": 100 * float(self._top5[: self.done].mean()) if self._classes > TOP else None,
            "error": 100 * math.sqrt(top1 * (1 - top1) / self.done),
        }


def paired_metrics(reference: Ranks, candidate: Ranks) -> dict[str, float | None]:
    """The accuracies of both models and their paired difference.

    drop = mean d, d_i = right_reference,i - right_candidate,i. Its standard error is sqrt(var(d) /
    n), which is smaller than that of two independent sets.
    """
    metrics = candidate.metrics()
    other = reference.metrics()
    metrics |= {"reference_top1": other["top1"], "reference_top5": other["top5"]}
    if candidate.done:
        difference = reference.right.astype(np.float64) - candidate.right
        metrics["drop"] = 100 * float(difference.mean())
        metrics["drop_error"] = 100 * float(difference.std()) / math.sqrt(candidate.done)
    return metrics


def _scores(outputs: Arrays) -> np.ndarray:
    """The first output with a row of classes for each sample, float `(n, classes)`."""
    for array in outputs.values():
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.ndim >= 2:
            rows = array.reshape(len(array), -1)
            if rows.shape[1] == array.shape[1] >= 2:
                return rows
    shapes = ", ".join(f"'{name}' {getattr(array, 'shape', '')}" for name, array in outputs.items())
    raise ModelError(
        f"The model has no output of shape (N, classes), it has {shapes}; labels can't be "
        "compared with it, so give --reference and unlabelled samples."
    )
