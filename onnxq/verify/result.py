"""The result of `compress`, its metrics, and what of them the file's metadata keep."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxq.data.preprocess import Preprocess
from onnxq.errors import OutputError, WorseError
from onnxq.export.interface import describe, own_metadata
from onnxq.forms.variant import PLAIN, Variant
from onnxq.load.read import file_bytes, model_files
from onnxq.options.recipe import Recipe
from onnxq.plan import Plan
from onnxq.runtime.costs import StageCost
from onnxq.search.search import SearchResult
from onnxq.synthesise.images import Synthesis
from onnxq.train.held_out import Learned
from onnxq.verify.metrics import LEAST_METRICS, METADATA_KEY, SHORT_METRICS, Metrics
from onnxq.verify.opened import shipped_files, shipped_model
from onnxq.verify.verdict import size_remedy
from onnxq.verify.verify import Measurements


@dataclass
class Result:
    """The result of `compress`.

    Attributes:
        model: the deployable model.
        path: the file, or None where none was asked for.
        metrics: the differences to the original, sizes and latencies.
        recipe: the options that were used.
        plan: how each layer and tensor is quantized.
        notes: sentences for the user.
        synthesis: how samples were generated; None where they were given.
        unsaved: why the generator could not be saved; None where it was, or none was asked for.
    """

    model: ir.Model
    path: Path | None
    metrics: Metrics
    recipe: Recipe
    plan: Plan
    notes: list[str] = field(default_factory=list)
    synthesis: Synthesis | None = None
    unsaved: OutputError | None = None

    @property
    def figures(self) -> Metrics:
        """The former name of `metrics`."""
        return self.metrics


@dataclass
class PlanReport:
    """The plan for `compress`: the normalised model, its plan and notes."""

    model: ir.Model
    plan: Plan
    notes: list[str]


def collect_metrics(
    original: Path,
    measured: Measurements,
    variant: Variant,
    learned: Learned,
    search: SearchResult | None,
    synthesis: Synthesis | None,
    samples: int,
    *,
    costs: Sequence[StageCost],
    engine: str,
    notes: Sequence[str],
    verdict: str,
) -> Metrics:
    """The metrics of a run, except for the size of its file, which holds them.

    Args:
        original: the user's file.
        measured: the measurements of the exported model.
        variant: the variant that was exported.
        learned: the history of training.
        search: the result of the search, where there was one.
        synthesis: how samples were generated; None where they were given.
        samples: number of samples, held-out ones included.
        costs: of each stage.
        engine: what computed gradients; '' where none were needed.
        notes: sentences for the user.
        verdict: the fault of the result, in words; '' where there is none.
    """
    return Metrics(
        size_before=file_bytes(original),
        size_after=0,
        shipped_before=shipped_files(model_files(original)),
        **_of_plan(variant.student.plan),
        **_of_measurements(measured),
        **_of_form(variant),
        learning=_learning(learned, variant.score),
        engine=engine,
        curve=_curve(learned),
        search={} if search is None else search.to_fields(),
        synthesis={} if synthesis is None else synthesis.to_fields(),
        samples=samples,
        costs=[asdict(each) for each in costs],
        notes=list(notes),
        verdict=verdict,
    )


def _of_plan(plan: Plan) -> dict[str, Any]:
    layers = plan.layers.values()
    return {
        "codebooks": {s.name: s.codebook for s in layers if s.codebook is not None},
        "narrow": {s.name: s.num_bits for s in layers if s.narrow},
        "layers": len(layers),
        "weight_only": {s.name: s.reason for s in layers if s.reason},
        "left_alone": dict(plan.left_alone),
    }


def _of_measurements(measured: Measurements) -> dict[str, Any]:
    outputs, kernels = measured.outputs, measured.kernels
    return {
        "agreement": outputs.agreement,
        "kl": outputs.kl,
        "estimated_drop": outputs.estimated_drop,
        "estimated_drop_error": outputs.estimated_drop_error,
        "sqnr_db": outputs.sqnr_db,
        "task": outputs.task,
        "task_metrics": outputs.task_metrics,
        "held_back": outputs.samples,
        "student_agreement": measured.student_agreement,
        "integer_layers": len(kernels.integer_layers()),
        "kernels": kernels.layers,
        "float_nodes": kernels.float_nodes,
        "saturating": measured.saturating,
        **_latencies(measured),
    }


def _latencies(measured: Measurements) -> dict[str, float]:
    if measured.latency is None:
        return {}
    before, after = measured.latency
    return {
        "latency_before_ms": before.median_ms,
        "latency_before_spread_ms": before.spread_ms,
        "latency_after_ms": after.median_ms,
        "latency_after_spread_ms": after.spread_ms,
    }


def _of_form(variant: Variant) -> dict[str, Any]:
    found: dict[str, Any] = {
        "equalization": "none" if variant.name == PLAIN else variant.name,
        "bias_correction": variant.corrected,
    }
    if variant.bias_cost is not None:
        own, shared = variant.bias_cost
        count = variant.recipe.bias_centroids
        found["bias_centroids"] = {"count": count, "own": own, "shared": shared}
    return found


def _learning(learned: Learned, score: float) -> dict[str, Any]:
    """The metrics of training; `score` is that of the final student."""
    return {
        "unit": learned.unit,
        "start_score": learned.start_score,
        "learned_score": learned.score,
        "score": score,
        "epoch": learned.epoch,
        "epochs_run": len(learned.history),
        "scores": _finite(learned.history),
    }


def _curve(learned: Learned) -> dict[str, list[float | None]]:
    """Error and agreement by minutes."""
    minutes = [seconds / 60 for seconds, _, _ in learned.curve]
    scores, agreement = ([point[i] for point in learned.curve] for i in (1, 2))
    columns = {"minutes": minutes, "scores": scores, "agreement": agreement}
    return {name: _finite(values) for name, values in columns.items() if values}


def _finite(values: Iterable[float]) -> list[float | None]:
    """The number, or None where it is not finite, which JSON can't express."""
    return [value if math.isfinite(value) else None for value in values]


LEVELS: tuple[tuple[bool, Collection[str] | None], ...] = (
    (True, None),
    (False, SHORT_METRICS),
    (False, LEAST_METRICS),
)
"""Whether options at their defaults are stated, and which metrics: from all to the least."""


def write_metadata(
    model: ir.Model, metrics: Metrics, recipe: Recipe, preprocess: Preprocess | None
) -> Metrics:
    """Put version, recipe, preprocessing and metrics into a model, in place.

    Some is left out where all of it would make the file larger than the original.

    Args:
        model: the exported model.
        metrics: of the model, without its size.
        recipe: its options.
        preprocess: how an image becomes its input; None where unknown.

    Returns:
        The metrics with the sizes of the file.
    """
    size = 0
    for spelt_out, wanted in LEVELS:
        entries = own_metadata(recipe, preprocess, spelt_out=spelt_out)
        size = _describe(model, metrics, wanted, entries)
        if size < metrics.size_before:
            break
    return replace(metrics.of_size(size), shipped_after=shipped_model(model))


def check_smaller(
    model: ir.Model, original: Path, recipe: Recipe, preprocess: Preprocess | None
) -> None:
    """Check that an exported model, with the least metadata, is smaller than the original.

    Args:
        model: the exported model, which gets the metadata.
        original: the original's file.
        recipe: its options.
        preprocess: how an image becomes its input; None where unknown.

    Raises:
        WorseError: its file would be no smaller than the original's.
    """
    before = file_bytes(original)
    spelt_out, wanted = LEVELS[-1]
    entries = own_metadata(recipe, preprocess, spelt_out=spelt_out)
    size = _describe(model, Metrics(before, 0), wanted, entries)
    if size >= before:
        raise WorseError(
            f"the compressed file would have {size:,} bytes, and '{original}' has {before:,}: "
            f"nothing was written; {size_remedy(recipe)}, and --allow-worse writes it all the same"
        )


def _describe(
    model: ir.Model, metrics: Metrics, wanted: Collection[str] | None, entries: dict[str, str]
) -> int:
    return describe(model, partial(_entries, metrics, wanted, entries))


def _entries(
    metrics: Metrics, wanted: Collection[str] | None, entries: dict[str, str], size: int
) -> dict[str, str]:
    """The metadata of a file of so many bytes."""
    return {**entries, METADATA_KEY: metrics.of_size(size).to_metadata(wanted)}
