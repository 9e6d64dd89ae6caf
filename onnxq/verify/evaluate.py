"""Accuracy on labelled samples, and the difference to a reference.

This is the only place that reads labels, and nothing here chooses anything.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.data.arrays import InputSpec
from onnxq.data.labelled import LABELS_FILE, open_labelled
from onnxq.data.preprocess import Preprocess, find_preprocess
from onnxq.data.samples import open_samples
from onnxq.errors import DataError, ModelError
from onnxq.graph.meanings import check_task, find_meanings
from onnxq.options.table import AUTO, EVALUATION_BATCH, Task
from onnxq.progress import Progress, Silent
from onnxq.runtime.dataset import Samples
from onnxq.runtime.session import Arrays, SessionPool
from onnxq.verify.opened import OpenedModel, common_inputs, open_model
from onnxq.verify.outputs import (
    Comparer,
    Comparison,
    paired_outputs,
    probability_outputs,
)

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


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`; None where there were no labels, or no reference.

    Attributes:
        samples: number of samples.
        top1: share of the samples whose label has the largest output, percent.
        top5: share of the samples whose label is among the five largest outputs, percent.
        error: one standard error of `top1`, percentage points.
        reference_top1: top-1 of the reference, percent.
        reference_top5: top-5 of the reference, percent.
        drop: reference_top1 - top1, percentage points; positive where the model is worse.
        drop_error: one standard error of the paired difference, percentage points.
        agreement: share of equal decisions, percent.
        kl: mean KL divergence of the model's softmax from the reference's, nats.
        estimated_drop: label-free estimate of the drop, percentage points.
        sqnr_db: SQNR of each output against the reference's, decibels.
        task: what the outputs are for, as found from the reference's graph.
        task_metrics: the task's own metrics by name, such as the cosine of embeddings.
        skipped: files that could not be read.
    """

    samples: int
    top1: float | None = None
    top5: float | None = None
    error: float | None = None
    reference_top1: float | None = None
    reference_top5: float | None = None
    drop: float | None = None
    drop_error: float | None = None
    agreement: float | None = None
    kl: float | None = None
    estimated_drop: float | None = None
    sqnr_db: dict[str, float] = field(default_factory=dict)
    task: str = ""
    task_metrics: dict[str, float] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def evaluate(
    model: str | Path,
    data: str | Path,
    reference: str | Path | None = None,
    *,
    preprocess: Preprocess | None = None,
    samples: int | None = None,
    batch_size: int = EVALUATION_BATCH,
    task: Task = AUTO,
    progress: Progress | None = None,
) -> Evaluation:
    """Top-1 and top-5 on labelled samples, and the difference to a reference.

    Args:
        model: the file to measure, float or quantized.
        data: labelled samples; with a reference, unlabelled ones are accepted.
        reference: the file to compare with, usually the float original.
        preprocess: how an image becomes an input; None looks beside and inside both files.
        samples: most samples to use; None means all.
        batch_size: samples per run.
        task: what the outputs are for; 'auto' finds it from the reference, and classes where there
            are labels.
        progress: told how many samples are done.

    Raises:
        OnnxqError: a file can't be read, or the samples don't fit the model.
    """
    opened = open_model(Path(model))
    other = None if reference is None else open_model(Path(reference))
    if preprocess is None:
        for each in filter(None, (opened, other)):
            preprocess = preprocess or find_preprocess(each.path, each.metadata)
    inputs = common_inputs(opened, other)
    chosen, labels = _open_data(Path(data), inputs, preprocess, samples, other is None)
    progress = progress or Silent()
    progress.start("evaluate", len(chosen))
    if other is not None:
        check_task(other.computed.graph, task)
    if task == AUTO and labels is not None:
        task = "classes"
    run = _Run(chosen, labels, batch_size, task, progress.at)
    evaluation = run.alone(opened) if other is None else run.beside(opened, other)
    progress.finish()
    return evaluation


def _open_data(
    path: Path,
    inputs: list[InputSpec],
    preprocess: Preprocess | None,
    limit: int | None,
    need_labels: bool,
) -> tuple[Samples, np.ndarray | None]:
    if not need_labels and not _has_labels(path):
        return open_samples(path, inputs, preprocess, limit), None
    labelled = open_labelled(path, inputs, preprocess)
    if limit is not None:
        labelled = labelled.take(limit)
    return labelled.samples, labelled.labels


def _has_labels(path: Path) -> bool:
    if path.is_dir():
        names = [entry.name for entry in path.iterdir() if entry.is_dir()]
        classes = [n for n in names if not n.startswith((".", "test_data_set"))]
        return (path / LABELS_FILE).is_file() or bool(classes)
    if path.suffix.lower() != ".npz" or not path.is_file():
        return False
    try:
        with np.load(path) as arrays:
            return "labels" in arrays
    except (OSError, ValueError) as error:
        raise DataError(f"Can't read '{path}': {error}.") from error


class _Run:
    """One pass over the samples."""

    def __init__(
        self,
        samples: Samples,
        labels: np.ndarray | None,
        batch_size: int,
        task: Task,
        on_batch: Callable[[int], None],
    ) -> None:
        self._samples, self._labels, self._tell = samples, labels, on_batch
        self._batch_size, self._task = batch_size, task

    def alone(self, opened: OpenedModel) -> Evaluation:
        """Top-1 and top-5 of one model."""
        assert self._labels is not None
        ranks, pool = Ranks(self._labels), SessionPool(opened.runnable)
        for found in pool.map(self._samples.batches(self._size(pool))):
            ranks.add(found)
            self._tell(ranks.done)
        metrics: dict[str, Any] = dict(ranks.metrics())
        return Evaluation(samples=ranks.done, skipped=self._samples.skipped, **metrics)

    def beside(self, opened: OpenedModel, other: OpenedModel) -> Evaluation:
        """The difference to a reference, and top-1 and top-5 of both where there are labels."""
        pools = SessionPool(other.runnable), SessionPool(opened.runnable)
        _check_outputs(pools[0].outputs, pools[1].outputs, opened, other)
        meanings = find_meanings(other.computed.graph, self._task)
        comparer = Comparer(pools[0].outputs, probability_outputs(other.model), meanings)
        both = None if self._labels is None else (Ranks(self._labels), Ranks(self._labels))
        done, size = 0, self._size(*pools)
        for expected, found in paired_outputs(*pools, self._samples, size):
            comparer.add(expected, found)
            if both is not None:
                both[0].add(expected)
                both[1].add(found)
            done = min(done + size, self._samples.count)
            self._tell(done)
        metrics = {} if both is None else dict(paired_metrics(*both))
        return _evaluation(comparer.comparison(done), metrics, self._samples.skipped)

    def _size(self, *pools: SessionPool) -> int:
        """Samples in a run: one where a model declares a batch that it does not take."""
        if self._samples.batch is not None:
            return self._samples.batch
        feeds = next(self._samples.batches(self._batch_size))
        count = len(next(iter(feeds.values())))
        try:
            takes = all(_gives_rows(pool.run(feeds), count) for pool in pools)
        except Exception as error:
            # ONNX Runtime's exceptions share no base class but Exception.
            logger.debug("samples are run one by one: %s", error)
            takes = False
        return self._batch_size if takes else 1


def _gives_rows(outputs: Arrays, count: int) -> bool:
    """Whether no output of several samples has a single row."""
    arrays = [each for each in outputs.values() if isinstance(each, np.ndarray) and each.ndim]
    return count == 1 or not any(len(each) == 1 for each in arrays)


def _check_outputs(
    wanted: list[str], found: list[str], opened: OpenedModel, other: OpenedModel
) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(
            f"The reference '{other.path}' has the output '{missing[0]}', which "
            f"'{opened.path}' lacks; give the model's own original."
        )


def _evaluation(comparison: Comparison, metrics: dict[str, Any], skipped: list[str]) -> Evaluation:
    agreement = comparison.agreement
    return Evaluation(
        samples=comparison.samples,
        agreement=None if agreement is None else 100 * agreement,
        kl=comparison.kl,
        estimated_drop=comparison.estimated_drop,
        sqnr_db=comparison.sqnr_db,
        task=comparison.task,
        task_metrics=comparison.task_metrics,
        skipped=skipped,
        **metrics,
    )
