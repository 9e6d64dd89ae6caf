"""The metadata of a compressed file: as much as leaves the file smaller than the original."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx_ir as ir

from onnxq.data.preprocess import Preprocess
from onnxq.errors import WorseError
from onnxq.export.metadata import describe, own_metadata
from onnxq.load.read import file_bytes
from onnxq.options.recipe import Recipe
from onnxq.verify.exported import shipped_model
from onnxq.verify.metrics import LEAST_METRICS, METADATA_KEY, SHORT_METRICS, Metrics
from onnxq.verify.verdict import size_remedy

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
