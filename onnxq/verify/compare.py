"""The noise of each layer of a compressed file against its float original."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from onnxq.data.preprocess import Preprocess, find_preprocess
from onnxq.data.samples import open_samples
from onnxq.errors import ModelError
from onnxq.load.model import load_model
from onnxq.normalise.pipeline import normalise
from onnxq.options.recipe import METADATA_KEY as RECIPE_KEY
from onnxq.options.recipe import Recipe
from onnxq.options.table import COMPARED_SAMPLES
from onnxq.plan import make_plan
from onnxq.progress import Progress, Silent
from onnxq.runtime.dataset import Samples
from onnxq.verify.kernels import INTEGER_KERNELS
from onnxq.verify.layer_noise import LayerNoise, PairedLayer, pair_layers
from onnxq.verify.metrics import METADATA_KEY, Metrics
from onnxq.verify.opened import OpenedModel, common_inputs, open_model

CHECK_SAMPLES = 2
"""Samples on which every pass of normalisation is checked."""

Compute = Literal["integer", "weight-only", "float"]


@dataclass(frozen=True)
class LayerDifference:
    """The noise of one layer.

    Attributes:
        name: the node's name.
        op_type: its operator.
        num_bits: bit width of the integer weights; None where the weights are float.
        compute: "integer" kernels, "weight-only" or "float".
        sqnr_db: SQNR of its output, with all noise that arrives from earlier layers, decibels; None
            where the file has no such tensor.
        weight_sqnr_db: SQNR of its weights alone, decibels.
    """

    name: str
    op_type: str
    num_bits: int | None
    compute: Compute
    sqnr_db: float | None
    weight_sqnr_db: float


@dataclass(frozen=True)
class LayerComparison:
    """The result of `compare`.

    Attributes:
        samples: number of samples.
        layers: worst output first; layers without an SQNR last.
        outputs: SQNR of each float output of the model, decibels.
        equalized: whether the file's channels were rescaled, which the comparison undoes.
        skipped: files that could not be read.
    """

    samples: int
    layers: list[LayerDifference]
    outputs: dict[str, float]
    equalized: bool = False
    skipped: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)


def compare(
    original: str | Path,
    compressed: str | Path,
    data: str | Path,
    *,
    preprocess: Preprocess | None = None,
    samples: int | None = COMPARED_SAMPLES,
    progress: Progress | None = None,
) -> LayerComparison:
    """SQNR of each layer of a compressed file against its float original.

    With y a tensor of the original and y' the file's, over all samples,

        SQNR = 10 log10(sum y^2 / sum (y - y')^2)  decibels

    Args:
        original: the float file.
        compressed: the file that `compress` wrote of it.
        data: samples; labels are not read.
        preprocess: how an image becomes an input; None looks inside and beside both files.
        samples: most samples to use; None means all.
        progress: told how many samples are done.

    Raises:
        OnnxqError: a file can't be read, they don't belong together, or the samples don't fit.
    """
    opened, other = open_model(Path(compressed)), open_model(Path(original))
    _check_compressed(opened)
    inputs = common_inputs(opened, other)
    if preprocess is None:
        for each in (opened, other):
            preprocess = preprocess or find_preprocess(each.path, each.metadata)
    model = load_model(other.path)
    first = open_samples(Path(data), inputs, preprocess, samples)
    normalised = normalise(model, [next(first.batches(CHECK_SAMPLES))])
    # Normalisation frees the batch where it can, and so it did for the compressed file.
    chosen = open_samples(Path(data), opened.inputs, preprocess, samples)
    if not normalised.batch_free:
        chosen = first
    return _compare(normalised.model, opened, chosen, progress or Silent())


def _check_compressed(opened: OpenedModel) -> None:
    if not opened.is_compressed:
        raise ModelError(
            f"'{opened.path}' was not written by onnxq; give the float original first, and then "
            "the file that onnxq compress made of it."
        )


def _compare(
    teacher: ir.Model, opened: OpenedModel, samples: Samples, progress: Progress
) -> LayerComparison:
    metrics = _metrics(opened)
    equalized = metrics.equalization not in ("", "none")
    layers, outputs = pair_layers(teacher, opened, equalized), _common_outputs(teacher, opened)
    noise = LayerNoise(teacher, opened.computed, layers, outputs)
    noise.measure(samples, progress)
    bits = _weight_bits(teacher, opened)
    rows = [_row(layer, noise.sqnr_db(layer.tensor), metrics, bits) for layer in layers]
    found = {name: noise.sqnr_db(name) for name in outputs}
    return LayerComparison(
        samples=samples.count,
        layers=sorted(rows, key=lambda row: math.inf if row.sqnr_db is None else row.sqnr_db),
        outputs={name: db for name, db in found.items() if db is not None},
        equalized=equalized,
        skipped=samples.skipped,
    )


def _row(
    layer: PairedLayer, sqnr_db: float | None, metrics: Metrics, bits: dict[str, int]
) -> LayerDifference:
    compute: Compute = "weight-only"
    if layer.is_float:
        compute = "float"
    elif metrics.kernels.get(layer.name) in INTEGER_KERNELS:
        compute = "integer"
    return LayerDifference(
        name=layer.name,
        op_type=layer.op_type,
        num_bits=None if layer.is_float else bits.get(layer.name),
        compute=compute,
        sqnr_db=sqnr_db,
        weight_sqnr_db=layer.weight_noise.sqnr_db(),
    )


def _common_outputs(teacher: ir.Model, opened: OpenedModel) -> list[str]:
    names = [str(value.name) for value in teacher.graph.outputs]
    present = {value.name for value in opened.model.graph.outputs}
    missing = [name for name in names if name not in present]
    if missing:
        raise ModelError(
            f"The float model has the output '{missing[0]}', which '{opened.path}' lacks; give "
            "the original that it was made from."
        )
    return names


def _metrics(opened: OpenedModel) -> Metrics:
    text = opened.metadata.get(METADATA_KEY)
    return Metrics(0, 0) if text is None else Metrics.from_json(text)


def _weight_bits(teacher: ir.Model, opened: OpenedModel) -> dict[str, int]:
    """Bit widths of the weights by layer, from the recipe in the file."""
    text = opened.metadata.get(RECIPE_KEY)
    recipe = Recipe() if text is None else Recipe.from_json(text)
    return {name: spec.num_bits for name, spec in make_plan(teacher, recipe).layers.items()}
