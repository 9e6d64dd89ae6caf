"""The weighted losses of synthetic images, and gradient descent on the images' pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from onnxq.engine import Engine
from onnxq.graph.facts import values_by_name
from onnxq.synthesise.images import ImageSpace
from onnxq.synthesise.losses import (
    BatchNorm,
    batch_norm_divergence,
    batch_norm_moments,
    cross_entropy,
    inception_score,
)
from onnxq.synthesise.parts import Parts
from onnxq.train.optimizer import Adam, CosineRestarts

LOSS = "onnxq.synthesis"
"""Name of the loss output, a mean over the batch; its terms, unweighted, have their kind behind."""

BATCH_NORM_FORMS = {"bn": batch_norm_divergence, "bn-moments": batch_norm_moments}
"""How the statistics of a layer are compared, by kind of loss."""


class Student(Protocol):
    """A student for the adversarial loss: images should be hard for it."""

    def inputs(self) -> dict[str, ir.Value]:
        """The graph inputs of its parameters."""

    def attach(self, parts: Parts, model: ir.Model, inputs: Mapping[str, ir.Value]) -> ir.Value:
        """The student's logits, computed by nodes in the model's own graph."""


@dataclass(frozen=True)
class SynthesisObjective:
    """Weighted losses of a batch of images; losses of weight 0 are left out.

    Attributes:
        weights: by kind; for 'inception' it is alpha.
        batch_norms: the layers whose statistics are matched.
        logits: the tensor of a classifier's logits, or None.
        student: for the adversarial loss, or None.
    """

    weights: Mapping[str, float]
    batch_norms: Sequence[BatchNorm]
    logits: str | None
    student: Student | None = None

    @property
    def kinds(self) -> list[str]:
        """The kinds of the losses, in the order of their outputs."""
        possible = {
            "inception": self.logits is not None,
            "bn": bool(self.batch_norms),
            "bn-moments": bool(self.batch_norms),
            "adversarial": self.student is not None,
        }
        return [kind for kind, there in possible.items() if there and self.weights.get(kind, 0)]

    def attach(self, model: ir.Model) -> ir.Model:
        """A copy of the model whose outputs are the loss and its terms.

        Args:
            model: the float network, unfolded; it isn't changed.
        """
        copy = model.clone(deep_copy=False)
        values = values_by_name(copy.graph)
        parts = Parts(copy, LOSS)
        terms: dict[str, ir.Value] = {}
        for kind in self.kinds:
            if kind == "inception":
                alpha = self.weights[kind]
                terms[kind] = inception_score(parts, values[str(self.logits)], alpha)
            elif kind == "adversarial" and self.student is not None:
                inputs = self.student.inputs()
                copy.graph.inputs.extend(inputs.values())
                student = self.student.attach(parts, copy, inputs)
                terms[kind] = parts.op(
                    "Neg", cross_entropy(parts, student, values[str(self.logits)])
                )
            else:
                form = BATCH_NORM_FORMS[kind]
                found = [form(parts, values[n.tensor], n) for n in self.batch_norms]
                terms[kind] = _total(parts, found)
        loss = _total(parts, [self._weighted(parts, kind, term) for kind, term in terms.items()])
        parts.finish({LOSS: loss, **{term_name(kind): term for kind, term in terms.items()}})
        return copy

    def _weighted(self, parts: Parts, kind: str, term: ir.Value) -> ir.Value:
        weight = 1.0 if kind == "inception" else self.weights[kind]
        return parts.op("Mul", term, parts.scalar(weight))


def term_name(kind: str) -> str:
    """The name of the output of one loss."""
    return f"{LOSS}.{kind}"


def _total(parts: Parts, terms: Sequence[ir.Value]) -> ir.Value:
    total = terms[0]
    for term in terms[1:]:
        total = parts.op("Add", total, term)
    return total


RATE = 0.5
"""Adam's step at first, in standard deviations of the noise that images start from."""

Terms = dict[str, float]
"""The losses of a batch, by kind."""


class Distilled:
    """Optimizes batches of images, each batch by itself.

    Args:
        model: the float model, unfolded.
        space: of its input.
        objective: the losses of the images.
        rate: Adam's initial learning rate.
    """

    def __init__(
        self,
        model: ir.Model,
        space: ImageSpace,
        objective: SynthesisObjective,
        rate: float = RATE,
    ) -> None:
        self._space, self._rate, self._kinds = space, rate, objective.kinds
        terms = [term_name(kind) for kind in self._kinds]
        self._engine = Engine(objective.attach(model), [space.name], LOSS, terms)

    def begin(self, seeds: Sequence[Sequence[int]], size: int, steps: int) -> Descent:
        """One batch of noise per seed, ready for gradient descent."""
        batches = [self._space.noise(np.random.default_rng(seed), size) for seed in seeds]
        return Descent(self._engine, self._kinds, self._space, batches, self._rate, steps)


class Descent:
    """Gradient descent on a few batches of images, side by side.

    Args:
        engine: computes losses and gradients of a batch.
        kinds: of the losses.
        space: keeps images in their range.
        batches: to start from; they are changed in place.
        rate: Adam's initial learning rate.
        steps: after so many the learning rate is 0.
    """

    def __init__(
        self,
        engine: Engine,
        kinds: Sequence[str],
        space: ImageSpace,
        batches: list[np.ndarray],
        rate: float,
        steps: int,
    ) -> None:
        self.batches, self.steps, self.done = batches, steps, 0
        self._engine, self._kinds, self._space, self._rate = engine, kinds, space, rate
        self._optimizers = [Adam(rate) for _ in batches]

    def step(self) -> Terms:
        """Update each batch once.

        Returns:
            The losses before the step, means over the batches.
        """
        name = self._space.name
        schedule = CosineRestarts(self._rate, max(self.steps, 1))
        found = self._engine.each([{name: images} for images in self.batches])
        for images, optimizer, (_, gradients) in zip(
            self.batches, self._optimizers, found, strict=True
        ):
            optimizer.lr = schedule.lr(min(self.done, self.steps - 1))
            unit = self._space.spread
            moved = {name: images / unit}
            optimizer.step(moved, {name: gradients[name] * unit})
            np.multiply(moved[name], unit, out=images)
            self._space.clip(images)
        self.done += 1
        return {
            kind: float(np.mean([outputs[term_name(kind)] for outputs, _ in found]))
            for kind in self._kinds
        }
