"""The inspection of a model: its layers, and what can be quantized."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxq.data.preprocess import METADATA_KEY as PREPROCESS_KEY
from onnxq.data.preprocess import Preprocess
from onnxq.graph.facts import computed_from_constants
from onnxq.graph.operators import TABLE, WEIGHT_OPERATORS, weight_index
from onnxq.learn.learn import in_order, spelt_out
from onnxq.load.contents import read_contents
from onnxq.load.float_types import stored_type
from onnxq.load.read import read_proto
from onnxq.load.structure import COMPRESSED_KEY
from onnxq.normalise.clean import NameEverything
from onnxq.numerics.packing import bits_per_index
from onnxq.options.recipe import METADATA_KEY as RECIPE_KEY
from onnxq.options.recipe import Recipe, recipe_fields
from onnxq.options.table import AUTO
from onnxq.pipeline import plan_model
from onnxq.plan import Plan
from onnxq.plan.spec import LayerSpec, codebook_bytes, packed_integer_bytes
from onnxq.report.contents import (
    ContentRow,
    Fates,
    content_rows,
    is_dequantized,
    stored_table,
    stored_weight,
)
from onnxq.verify.metrics import METADATA_KEY, Metrics
from onnxq.verify.opened import OpenedModel, open_model

INT4_REASON = "INT4: ONNX Runtime computes it in float on a CPU"


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Attributes:
        name: the node's name.
        op_type: its operator.
        parameters: number of weights.
        bytes_before: bytes of the float weights.
        bytes_after: bytes of the quantized weights; equal where the layer is not quantized.
        num_bits: bits of an integer weight or index; None where the layer stays float.
        compute: "integer", "weight-only" or "float".
        reason: why it is not on integer kernels, or has no codebook; '' where there is nothing to
            say.
        codebook: number of centroids, or None.
        weight: name of its weights; of several constants, of the largest.
        shares: name of an earlier layer that reads the same weights; '' where none does.
    """

    name: str
    op_type: str
    parameters: int
    bytes_before: int
    bytes_after: int
    num_bits: float | None
    compute: str
    reason: str = ""
    codebook: int | None = None
    weight: str = ""
    shares: str = ""


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect`.

    Attributes:
        path: the file.
        size: its bytes, external data included.
        opset: version of the ONNX operators.
        ir_version: version of the file format.
        inputs: dtype and shape by name.
        outputs: dtype and shape by name.
        parameters: number of constant values anywhere in the file; shared ones once.
        operators: number of nodes by operator.
        layers: the nodes with weights.
        contents: every byte of the file, by kind.
        notes: what normalisation could not do.
        version: version of onnxq that wrote the file; None for any other file.
        recipe: its options.
        preprocess: its preprocessing.
        metrics: its metrics.
    """

    path: Path
    size: int
    opset: int
    ir_version: int
    inputs: dict[str, str]
    outputs: dict[str, str]
    parameters: int
    operators: dict[str, int]
    layers: list[LayerRow]
    contents: list[ContentRow]
    notes: list[str] = field(default_factory=list)
    version: str | None = None
    recipe: Recipe | None = None
    preprocess: dict[str, Any] | None = None
    metrics: Metrics | None = None

    def to_fields(self) -> dict[str, Any]:
        """The result as JSON fields."""
        fields = dataclasses.asdict(self)
        fields["path"] = str(self.path)
        fields["figures"] = fields.pop("metrics")
        fields["recipe"] = None if self.recipe is None else json.loads(self.recipe.to_json())
        return fields


def inspect(model: str | Path, recipe: Recipe | None = None) -> Inspection:
    """Layers, parameters and bytes of a model, what can be quantized and why not.

    A file that onnxq wrote has its version, recipe and metrics instead of a plan.

    Args:
        model: an ONNX file.
        recipe: the options to plan with; None means the defaults.

    Raises:
        OnnxqError: the file can't be read, or is not supported.
    """
    opened = open_model(Path(model))
    if opened.is_compressed:
        return _compressed(opened)
    report = plan_model(opened.path, recipe)
    return _inspection(opened, plan_rows(report.model, report.plan), report.notes)


def plan_rows(model: ir.Model, plan: Plan) -> list[LayerRow]:
    """A row for each layer of a plan and each node that is not quantized, in graph order."""
    rows = []
    width = stored_type(model).itemsize
    for node in model.graph.all_nodes():
        name = str(node.name)
        if name in plan.layers:
            rows.append(_planned_row(plan.layers[name], width))
        elif name in plan.left_alone:
            rows.append(_float_row(node, plan.left_alone[name], width))
    return _with_shared(rows)


EPOCHS = {"fast": "none", "default": "while it pays", "max": "by the method"}
"""What each effort means for the epochs."""


def option_rows(recipe: Recipe, plan: Plan, sources: Mapping[str, str]) -> list[dict[str, Any]]:
    """The value of each option (`option`, `value`), and where it comes from (`from`).

    What the recipe leaves open is as the effort sets it.

    Args:
        recipe: the options.
        plan: what the effort depends on.
        sources: of each value by name, as far as they are stated.
    """
    found = {name: (value, sources[name]) for name, value in recipe_fields(recipe).items()}
    if AUTO in recipe.learn:
        shared = recipe.bias_centroids is not None
        learned = spelt_out(recipe.learn, plan, shared_biases=shared, effort=recipe.effort)
        stages = [name for stage in in_order(learned) for name in sorted(stage)]
        found["learn"] = (stages or ["none"], "effort")
    if recipe.epochs is None:
        found["epochs"] = (EPOCHS[recipe.effort], "effort")
    return [{"option": n, "value": value, "from": source} for n, (value, source) in found.items()]


def _with_shared(rows: list[LayerRow]) -> list[LayerRow]:
    """Rows with the name of an earlier row that reads the same weights."""
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row.weight, row.name)
    return [
        dataclasses.replace(row, shares=first[row.weight])
        if row.weight and first[row.weight] != row.name
        else row
        for row in rows
    ]


def _planned_row(spec: LayerSpec, width: float) -> LayerRow:
    count = spec.parameters
    bits: float = spec.num_bits
    size = packed_integer_bytes(count, spec.num_bits, spec.rows) if spec.packed else count
    if spec.int4:
        size = -(-count // 2)
    if spec.codebook is not None:
        bits = bits_per_index(spec.codebook)
        integer = spec.compute == "integer"
        size = codebook_bytes(count, spec.codebook, integer=integer, rows=spec.rows)
    reasons = (spec.reason or (INT4_REASON if spec.int4 else ""), spec.refusal)
    reason = "; ".join(each for each in reasons if each)
    return LayerRow(
        spec.name,
        spec.op_type,
        count,
        round(width * count),
        size,
        bits,
        spec.compute,
        reason,
        spec.codebook,
        spec.weight,
    )


def _float_row(node: ir.Node, reason: str, width: float = 4) -> LayerRow:
    """The row of a layer that stays float, with the bytes of its stored floats."""
    arrays = [v.const_value for v in node.inputs if v is not None and v.const_value is not None]
    parameters = sum(array.size for array in arrays)
    floats = sum(array.size for array in arrays if array.dtype is ir.DataType.FLOAT)
    size = sum(array.nbytes for array in arrays) + round((width - 4) * floats)
    name, kind = str(node.name), node.op_type
    weight = max(arrays, key=lambda array: array.size).name if arrays else None
    return LayerRow(name, kind, parameters, size, size, None, "float", reason, weight=weight or "")


def _compressed(opened: OpenedModel) -> Inspection:
    metadata = opened.metadata
    metrics = Metrics.from_json(metadata[METADATA_KEY]) if METADATA_KEY in metadata else None
    inspection = _inspection(opened, _stored_rows(opened.model, metrics), [])
    preprocess = metadata.get(PREPROCESS_KEY)
    return dataclasses.replace(
        inspection,
        version=metadata[COMPRESSED_KEY],
        recipe=Recipe.from_json(metadata[RECIPE_KEY]) if RECIPE_KEY in metadata else None,
        preprocess=None if preprocess is None else _preprocess_fields(preprocess),
        metrics=metrics,
    )


def _preprocess_fields(text: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(Preprocess.from_json(text).to_json())
    return fields


def _stored_rows(model: ir.Model, metrics: Metrics | None) -> list[LayerRow]:
    """The layers of a file that onnxq wrote."""
    metrics = metrics or Metrics(0, 0)
    weight_only, left_alone = metrics.weight_only, metrics.left_alone
    rows = []
    width = stored_type(model).itemsize
    for node in model.graph:
        table = node.op_type == TABLE
        if node.op_type not in (*WEIGHT_OPERATORS, TABLE) or len(node.inputs) < 2:
            continue
        name, weight = str(node.name), node.inputs[weight_index(node.op_type)]
        # Nodes that onnxq adds to look rows up have no name.
        if table and (not name or computed_from_constants(node.inputs[1])):
            continue
        stored = stored_table(node) if table else stored_weight(weight)
        if table and stored is None:
            continue
        if stored is None:
            rows.append(_float_row(node, left_alone.get(name, "its weights are float")))
            continue
        reason = weight_only.get(name, "")
        if stored.int4:
            reason = reason or INT4_REASON
        # A small file holds no reasons.
        integer = not reason and not table and is_dequantized(weight)
        compute = "integer" if integer else "weight-only"
        count, size = stored.parameters, stored.size
        bits = metrics.narrow.get(name, stored.num_bits)
        sizes = round(width * count), size
        rows.append(
            LayerRow(
                name,
                node.op_type,
                count,
                *sizes,
                bits,
                compute,
                reason,
                stored.codebook,
                stored.name,
            )
        )
    return _with_shared(rows)


def _inspection(opened: OpenedModel, layers: list[LayerRow], notes: list[str]) -> Inspection:
    graph = opened.model.graph
    contents = read_contents(read_proto(opened.path), opened.path)
    return Inspection(
        path=opened.path,
        size=opened.size,
        opset=opened.model.opset_imports.get("", 0),
        ir_version=opened.model.ir_version,
        inputs={spec.name: str(spec) for spec in opened.inputs},
        outputs={str(value.name): _described(value) for value in graph.outputs},
        parameters=sum(tensor.size for tensor in contents.tensors if tensor.bytes),
        operators=dict(sorted(Counter(node.op_type for node in graph.all_nodes()).items())),
        layers=layers,
        contents=content_rows(contents, _fates(opened.model, layers)),
        notes=notes,
    )


def _fates(model: ir.Model, layers: list[LayerRow]) -> Fates:
    named = NameEverything()(model.clone()).model
    reasons = [row.reason if row.compute == "float" else None for row in layers]
    return Fates(
        [str(node.name) for node in named.graph],
        dict(zip((row.name for row in layers), reasons, strict=True)),
        dict(zip((row.weight for row in layers), reasons, strict=True)),
    )


def _described(value: ir.Value) -> str:
    shape = "" if value.shape is None else " (" + ", ".join(map(str, value.shape)) + ")"
    return f"{value.dtype.name.lower() if value.dtype else value.type}{shape}"
