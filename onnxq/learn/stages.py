"""What is learned, and in which order."""

from __future__ import annotations

from collections.abc import Collection

from onnxq.plan import Plan
from onnxq.plan.spec import CODE_BITS

ROUNDING = frozenset({"rounding"})
WITH_THRESHOLDS = frozenset({"thresholds", "codebooks"})
"""What is learned before rounding: ranges that move afterwards undo what was fitted to them."""

FEW_BITS = 6
"""Width from which down straight-through training gains more than its noise costs."""


def spelt_out(
    learns: Collection[str], plan: Plan, *, shared_biases: bool = False
) -> frozenset[str]:
    """The options with `auto` in words.

    - Codebooks are learned wherever there are some.
    - At 7 and 8 bits thresholds (FAT), then rounding: the ranges matter most.
    - At 6 bits and less rounding, then steps, weights and biases together.

    Args:
        learns: as in a recipe.
        plan: whose widths decide.
        shared_biases: whether biases share centroids; they would not after they were learned
            with the weights, which stay then.
    """
    if "auto" not in learns:
        return frozenset(learns) - {"none"}
    coded = [spec for spec in plan.layers.values() if spec.codebook is None]
    rounding = ROUNDING if coded else frozenset[str]()
    widths = [spec.num_bits for spec in coded] + [spec.num_bits for spec in plan.tensors.values()]
    few = min(widths, default=CODE_BITS) <= FEW_BITS
    together = {"steps"} if shared_biases else {"steps", "weights"}
    gradients = together if few else {"thresholds"}
    return rounding | gradients | {"codebooks"}


def in_order(wanted: frozenset[str]) -> list[frozenset[str]]:
    """What is learned together, in turn."""
    if not wanted & ROUNDING:
        return [wanted] if wanted else []
    first = wanted & WITH_THRESHOLDS if "thresholds" in wanted else frozenset[str]()
    stages = [first, ROUNDING, wanted - first - ROUNDING]
    return [stage for stage in stages if stage]
