"""Notes on the mixed-precision fallback: tensors kept in float, or at 8 bits."""

from __future__ import annotations

from onnxq.forms.forms import Variant
from onnxq.plan.float_layers import WIDE
from onnxq.plan.regions import FALLBACK_REASON


def fallback_notes(variant: Variant) -> list[str]:
    """Sentences for the user on what is computed more exactly than the recipe asked for."""
    plan, bits = variant.student.plan, variant.recipe.activation_bits
    notes = []
    floats = sum(spec.reason == FALLBACK_REASON for spec in plan.layers.values())
    if floats:
        notes.append(
            f"{floats} of {len(plan.layers)} layers run in float with integer weights: 8 bits "
            "are too few for the tensors around them, as samples showed (--no-fallback keeps "
            "them in integers)"
        )
    kept_at_8_bits = variant.fallback if bits is not None and bits < WIDE else ()
    if kept_at_8_bits:
        notes.append(
            f"{len(kept_at_8_bits)} of {len(plan.tensors)} tensors have 8 bits: "
            f"{bits} are too few for them, as samples showed (--no-fallback keeps theirs)"
        )
    return notes
