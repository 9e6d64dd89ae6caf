"""The result of a distillation."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxq import __version__
from onnxq.data.preprocess import Preprocess
from onnxq.distillation.training import Distilled
from onnxq.errors import OutputError
from onnxq.export.interface import describe, preprocess_metadata
from onnxq.options.contradictions import OF_DISTILLATION
from onnxq.options.recipe import Recipe
from onnxq.synthesise.images import Synthesis
from onnxq.train.held_out import Score

METADATA_KEY = "onnxq.distillation"
"""The key of a student's metadata under which options and metrics are kept as JSON."""


@dataclass(frozen=True)
class DistillMetrics:
    """How close a student is to its teacher, on held-out samples.

    Attributes:
        teacher_bytes: of the teacher's file, with its external data.
        student_bytes: of the written student.
        parameters: the number of trained parameters.
        unit: of the scores: relative error of the outputs, or KL divergence in nats.
        start_score: of the student before training; None where its outputs were not finite.
        score: of the written student.
        start_agreement: share of equal decisions before; None where there are no decisions.
        agreement: likewise of the written student.
        epoch: the epoch that was kept; 0 is the start.
        scores: after each epoch; None where it was not finite.
        samples: number of samples, held-out ones included.
        held_back: number of held-out samples.
        engine: what computed gradients, 'ort-training' or 'onnx'.
    """

    teacher_bytes: int
    student_bytes: int
    parameters: int
    unit: str
    start_score: float | None
    score: float | None
    start_agreement: float | None
    agreement: float | None
    epoch: int
    scores: list[float | None] = field(default_factory=list)
    samples: int = 0
    held_back: int = 0
    engine: str = ""

    def to_fields(self) -> dict[str, Any]:
        """All metrics as JSON fields."""
        return asdict(self)


@dataclass
class DistillResult:
    """The result of `distill`.

    Attributes:
        model: the trained student.
        path: the file, or None where none was asked for.
        metrics: how close it is to the teacher.
        recipe: the options that were used.
        init: where the first weights came from.
        notes: sentences for the user.
        synthesis: how samples were generated, where there were none.
        unsaved: why the generator could not be saved; None where it was, or none was asked for.
    """

    model: ir.Model
    path: Path | None
    metrics: DistillMetrics
    recipe: Recipe
    init: str
    notes: list[str] = field(default_factory=list)
    synthesis: Synthesis | None = None
    unsaved: OutputError | None = None

    @property
    def figures(self) -> DistillMetrics:
        """The former name of `metrics`."""
        return self.metrics


def make_metrics(
    found: Distilled,
    scored: Score,
    sizes: tuple[int, int],
    parameters: int,
    samples: tuple[int, int],
    engine: str,
) -> DistillMetrics:
    """The metrics of a run.

    Args:
        found: the history of the training.
        scored: the score of the written student.
        sizes: bytes of teacher and student.
        parameters: the number of trained parameters.
        samples: number of samples, and of the held-out ones among them.
        engine: what computed gradients.
    """
    return DistillMetrics(
        *sizes,
        parameters,
        found.unit,
        _finite(found.start_score),
        _finite(scored.score),
        _share(found.start_agreement),
        _share(scored.agreement),
        found.epoch,
        [_finite(score) for score in found.history],
        *samples,
        engine,
    )


def options_of(recipe: Recipe, init: str) -> dict[str, Any]:
    """The options that distillation uses, as JSON fields."""
    fields = json.loads(recipe.to_json())
    return {"init": init, **{name: fields[name] for name in OF_DISTILLATION}}


def write_metadata(
    model: ir.Model,
    metrics: DistillMetrics,
    recipe: Recipe,
    init: str,
    preprocess: Preprocess | None,
) -> DistillMetrics:
    """Put options, metrics and preprocessing into a student, in place.

    Returns:
        The metrics with the size of the file.
    """
    entries = preprocess_metadata(preprocess)

    def of_size(size: int) -> dict[str, str]:
        sized = replace(metrics, student_bytes=size)
        return {**entries, METADATA_KEY: metadata_text(sized, recipe, init)}

    return replace(metrics, student_bytes=describe(model, of_size))


def metadata_text(metrics: DistillMetrics, recipe: Recipe, init: str) -> str:
    """How the student was made, for its file's metadata: no times and no paths."""
    entries = {"figures": metrics.to_fields(), "options": options_of(recipe, init)}
    return json.dumps({**entries, "version": __version__}, sort_keys=True, separators=(",", ":"))


def _finite(score: float) -> float | None:
    # JSON has no word for what is not finite.
    return score if math.isfinite(score) else None


def _share(percentage: float | None) -> float | None:
    return None if percentage is None else percentage / 100
