"""Made images as samples like any others, and what is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

FEW_CLASSES = 0.5
"""Share of the classes that could occur below which variety has collapsed."""


@dataclass
class Synthesis:
    """How images were made, and what they are.

    Attributes:
        method: how.
        count: how many.
        steps: of gradient descent, for each image.
        weights: of the losses, by kind.
        losses: the terms before each step, unweighted, means over all images, by kind.
        minutes: how long all images had taken when each of these steps began.
        tuning: the same of a generator that went on learning with the student.
        classes: how many images the float model gives to each class; empty where it gives none.
        pictures: some of the images, uint8 `(pictures, height, width, channels)`.
        decisions: the class of each of them; empty where there are none.
        notes: sentences for the user.
        generator: the model that made them, noise in and images out; None where there is none.
    """

    method: str
    count: int = 0
    steps: int = 0
    weights: dict[str, float] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    minutes: list[float] = field(default_factory=list)
    tuning: dict[str, list[float]] = field(default_factory=dict)
    classes: list[int] = field(default_factory=list)
    pictures: np.ndarray | None = None
    decisions: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    generator: ir.Model | None = None

    def to_fields(self) -> dict[str, Any]:
        """All but the pictures and the notes, as JSON takes it."""
        return {
            "method": self.method,
            "count": self.count,
            "steps": self.steps,
            "weights": self.weights,
            "losses": self.losses,
            "minutes": self.minutes,
            "tuning": self.tuning,
            "classes": self.classes,
        }


def collapse_note(classes: Sequence[int]) -> str | None:
    """A sentence where the classes of synthetic images are few; None where they are not.

    exp(-sum_c f_c log f_c), the number of classes that f would be spread over evenly, is held
    against the number that could occur.
    """
    counts = np.asarray(classes, np.float64)
    possible = min(len(counts), int(counts.sum()))
    shares = counts[counts > 0] / max(counts.sum(), 1)
    effective = float(np.exp(-(shares * np.log(shares)).sum()))
    if possible < 2 or effective >= FEW_CLASSES * possible:
        return None
    largest = int(counts.argmax())
    return (
        f"the synthetic images are of {effective:.1f} classes in effect where {possible} could "
        f"occur ({100 * shares.max():.0f} % are of class {largest}): give --synthesis-loss "
        "inception a larger weight"
    )
