"""Whether a student is good enough to be written, by its metrics on held-out samples."""

from __future__ import annotations

from onnxq.distillation.result import DistillMetrics
from onnxq.options.recipe import Recipe
from onnxq.verify.verdict import BROKEN_AGREEMENT

BROKEN_ERROR = 0.7
"""Error, relative to the teacher's outputs, above which a student without decisions is broken: an
SQNR of 3 dB."""

BUDGET = ("epochs", "max_minutes", "lr")
"""Options that say how the student is trained: whoever sets one gets what it gives."""


def find_fault(metrics: DistillMetrics) -> str | None:
    """Why a student is broken, as a clause; None where it isn't.

    A classifier is evaluated by its decisions, any other student by the error of its outputs.
    """
    held_out = f"{metrics.held_back} held-out samples"
    if metrics.agreement is not None:
        if metrics.agreement >= BROKEN_AGREEMENT:
            return None
        return (
            f"it decides as the teacher on {metrics.agreement:.1%} of {held_out}, under "
            f"{BROKEN_AGREEMENT:.0%}"
        )
    if metrics.score is None:
        return f"its outputs on {held_out} are not finite"
    if metrics.score <= BROKEN_ERROR:
        return None
    return (
        f"the error of its outputs on {held_out} is {metrics.score:.0%} of the teacher's, over "
        f"{BROKEN_ERROR:.0%}"
    )


def names_budget(recipe: Recipe) -> bool:
    """Whether the recipe states how long or how the student is trained."""
    default = Recipe()
    return any(getattr(recipe, name) != getattr(default, name) for name in BUDGET)
