"""The size of the file, estimated before it is written."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.export.compact import export, float_bytes
from onnxq.export.save import model_bytes
from onnxq.forms.variant import Variant
from onnxq.load.float_types import halved_constants
from onnxq.load.read import file_bytes
from onnxq.options.recipe import Recipe
from onnxq.plan import Plan, make_plan
from onnxq.plan.layers import check_float_layers
from onnxq.plan.size import saved_bytes

CLOSE_IN_SIZE = 0.8
"""Share of the original's size from which on the file's is worth a look before learning."""

ESTIMATE_ERROR = 0.05
"""Share of a file's size by which a plan may be mistaken about it."""

METADATA_BYTES = 1024
"""Metrics, notes and preprocessing in a file, about."""


def variant_bytes(variant: Variant, recipe: Recipe) -> int:
    """The estimated file size of a variant under a recipe."""
    model = export(variant.student, variant.qparams)
    return model_bytes(model) + METADATA_BYTES + len(recipe.to_json())


def check_plan(
    plan: Plan, model: ir.Model, path: Path, recipe: Recipe, *, allow_worse: bool
) -> bool:
    """Check that a plan has layers to quantize, and that its file would be smaller.

    Args:
        plan: of the model.
        model: the normalised float model.
        path: the file of the original.
        recipe: the options.
        allow_worse: whether a file is written that is no smaller.

    Returns:
        Whether the sizes are so close that the file may turn out no smaller than the original.

    Raises:
        ModelError: there is nothing to quantize, or nothing to gain.
    """
    check_float_layers(plan, recipe)
    if not plan.layers:
        raise _nothing_to_quantize(plan, model, path, recipe)
    size, floats = file_bytes(path), float_bytes(model)
    expected = floats - saved_bytes(model.graph, plan, halved_constants(model).keys())
    if allow_worse or recipe.searches or (1 - ESTIMATE_ERROR) * expected < size:
        return expected > CLOSE_IN_SIZE * size
    reason = f"as floats they take {floats:,}" if floats > size else "most of them stay float"
    raise ModelError(
        f"'{path}' would not get smaller: its {size:,} bytes would become about "
        f"{expected:,} with {len(plan.layers)} layers as integers ({reason}); leave it "
        "unchanged, or add --allow-worse to quantize it all the same"
    )


def leaves_layers_float(plan: Plan, model: ir.Model, recipe: Recipe) -> bool:
    """Whether a plan keeps some layer in float only because of its size."""
    return len(make_plan(model, recipe).layers) > len(plan.layers)


def _nothing_to_quantize(plan: Plan, model: ir.Model, path: Path, recipe: Recipe) -> ModelError:
    """The error where there are no layers to quantize, or none would be smaller."""
    if could := make_plan(model, recipe).layers:
        first = next(iter(could))
        return ModelError(
            f"'{path}' would not get smaller: none of its layers takes fewer bytes as "
            f"integers ('{first}': {plan.left_alone[first]}); leave it unchanged, or add "
            "--allow-worse to quantize it all the same"
        )
    reasons = "; ".join(f"'{n}': {r}" for n, r in list(plan.left_alone.items())[:3])
    return ModelError(
        f"'{path}' has nothing to quantize: no Conv, ConvTranspose, Gemm or MatMul "
        f"with constant float weights" + (f" ({reasons})" if reasons else "")
    )
