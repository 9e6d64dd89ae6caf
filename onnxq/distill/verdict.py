"""Whether a student is good enough to be written unasked, by its figures on held-out samples."""

from __future__ import annotations

from onnxq.distill.result import DistillFigures
from onnxq.options.recipe import Recipe
from onnxq.verify.verdict import BROKEN_AGREEMENT

BROKEN_ERROR = 0.7
"""Error, relative to the teacher's outputs, above which a student without decisions is broken: an
SQNR of 3 dB."""

BUDGET = ("epochs", "max_minutes", "lr", "optimizer")
"""Options that say how the student is trained: whoever sets one gets what it gives."""


def find_fault(figures: DistillFigures) -> str | None:
    """Why a student is broken, as a clause; None where it isn't.

    A classifier is judged by its decisions, any other student by the error of its outputs.
    """
    held_out = f"{figures.held_back} held-out samples"
    if figures.agreement is not None:
        if figures.agreement >= BROKEN_AGREEMENT:
            return None
        return (
            f"it decides as the teacher on {figures.agreement:.1%} of {held_out}, under "
            f"{BROKEN_AGREEMENT:.0%}"
        )
    if figures.score is None:
        return f"its outputs on {held_out} are not finite"
    if figures.score <= BROKEN_ERROR:
        return None
    return (
        f"the error of its outputs on {held_out} is {figures.score:.0%} of the teacher's, over "
        f"{BROKEN_ERROR:.0%}"
    )


def names_budget(recipe: Recipe) -> bool:
    """Whether the recipe says how long or how the student is trained."""
    default = Recipe()
    return any(getattr(recipe, name) != getattr(default, name) for name in BUDGET)
