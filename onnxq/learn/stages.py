"""What is learned, and in which order."""

from __future__ import annotations

from collections.abc import Collection

from onnxq.plan import Plan
from onnxq.plan.spec import CODE_BITS

ROUNDING = frozenset({"rounding"})
WITH_THRESHOLDS = frozenset({"thresholds", "codebooks"})
"""What is learned before rounding: ranges that move afterwards undo what was fitted to them."""

FEW_BITS, FEWEST_WEIGHT_BITS = 5, 2
"""Widths of tensors and of weights from which down straight-through training gains, after rounding,
more than its noise costs."""
MANY_BITS = 7
"""Width from which up learned thresholds gain what rounding does not."""


def spelt_out(
    learns: Collection[str], plan: Plan, *, shared_biases: bool = False
) -> frozenset[str]:
    """The options with `auto` in words.

    - Codebooks are learned wherever there are some, codes rounded layer by layer.
    - Tensors of 5 bits and less, and weights of 2, are trained too: steps, weights and biases.
    - Where all have 7 or 8, thresholds come first (FAT): the ranges matter most.

    Args:
        learns: as in a recipe.
        plan: whose widths decide.
        shared_biases: whether biases share centroids; they would not after they were learned
            with the weights, which stay then.
    """
    if "auto" not in learns:
        return frozenset(learns) - {"none"}
    weights = [spec.num_bits for spec in plan.layers.values() if spec.codebook is None]
    tensors = [spec.num_bits for spec in plan.tensors.values()]
    narrowest, fewest = min(tensors, default=CODE_BITS), min(weights, default=CODE_BITS)
    found = {"rounding"} if weights else set[str]()
    if len(weights) < len(plan.layers):
        found.add("codebooks")
    if narrowest <= FEW_BITS or fewest <= FEWEST_WEIGHT_BITS:
        found |= {"steps"} if shared_biases else {"steps", "weights"}
    elif min(narrowest, fewest) >= MANY_BITS or not weights:
        found.add("thresholds")
    return frozenset(found)


def learns_weights(learns: Collection[str], plan: Plan, *, shared_biases: bool = False) -> bool:
    """Whether the weights behind codes are trained; arguments as of `spelt_out`."""
    return "weights" in spelt_out(learns, plan, shared_biases=shared_biases)


def in_order(wanted: frozenset[str]) -> list[frozenset[str]]:
    """What is learned together, in turn."""
    if not wanted & ROUNDING:
        return [wanted] if wanted else []
    first = wanted & WITH_THRESHOLDS if "thresholds" in wanted else frozenset[str]()
    stages = [first, ROUNDING, wanted - first - ROUNDING]
    return [stage for stage in stages if stage]
