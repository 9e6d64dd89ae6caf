"""The weighted losses of synthetic images, and gradient descent on the images' pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from onnxq.engine import Engine
from onnxq.graph.facts import constant, is_op, rank, values_by_name
from onnxq.normalise.affine import batch_norm_refusal
from onnxq.options.table import AUTO, EngineName
from onnxq.synthesise.images import ImageSpace
from onnxq.synthesise.parts import Parts
from onnxq.train.optimizer import Adam, CosineRestarts

FOLDED = (
    "the model has no BatchNormalization whose statistics synthetic images could match: its "
    "exporter folded it, or it never had any; torch.onnx.export keeps it with dynamo=False and "
    "training=TrainingMode.PRESERVE (of a model in eval mode), onnxsim with skip_fuse_bn=True"
)
"""A note for the user of a model without statistics."""


@dataclass(frozen=True)
class BatchNorm:
    """The running statistics of one BatchNormalization.

    Attributes:
        name: of the node.
        tensor: its input, (samples, channels, ...).
        rank: the number of dimensions of its input.
        mean: the running mean, float32 `(channels,)`.
        variance: the running variance, float32 `(channels,)`.
        epsilon: added to the variance by the node.
    """

    name: str
    tensor: str
    rank: int
    mean: np.ndarray
    variance: np.ndarray
    epsilon: float


def find_batch_norms(model: ir.Model) -> list[BatchNorm]:
    """The BatchNormalization nodes of an unfolded model that have statistics, in graph order.

    Nodes in training mode, with computed parameters, or with an input of unknown rank are left out.
    """
    found = []
    for node in model.graph:
        if not is_op(node, "BatchNormalization") or batch_norm_refusal(node) is not None:
            continue
        source, dimensions = node.inputs[0], rank(node.inputs[0])
        mean, variance = (constant(node.inputs[index]) for index in (3, 4))
        assert source is not None and mean is not None and variance is not None
        if dimensions is None or dimensions < 2:
            continue
        found.append(
            BatchNorm(
                str(node.name),
                str(source.name),
                dimensions,
                mean.astype(np.float32),
                variance.astype(np.float32),
                node.attributes.get_float("epsilon", 1e-5),
            )
        )
    return found


TINY = 1e-12
"""Keeps the logarithm of a class that no image has finite."""


def inception_score(parts: Parts, logits: ir.Value, alpha: float) -> ir.Value:
    """-(1/N) sum_i p_i log(p_i / q^alpha), summed over classes, q the mean of p over the batch.

    Li et al., DFQF, 2020, equation 5: the mean entropy of an image's classes, less alpha times the
    entropy of the batch's classes. Each image is clear, and all classes occur.

    Args:
        parts: takes the nodes.
        logits: (samples, classes), maybe with trailing dimensions of 1.
        alpha: the weight of variety.
    """
    logs = parts.op("LogSoftmax", parts.op("Flatten", logits, axis=1), axis=-1)
    chances = parts.op("Exp", logs)
    clear = parts.mean(parts.sum(parts.op("Mul", chances, logs), [1]), None)
    batch = parts.mean(chances, [0], keep=True)
    batch_logs = parts.op("Log", parts.op("Add", batch, parts.scalar(TINY)))
    varied = parts.sum(parts.op("Mul", batch, batch_logs), None)
    return parts.op("Sub", parts.op("Mul", varied, parts.scalar(alpha)), clear)


def cross_entropy(parts: Parts, student: ir.Value, teacher: ir.Value) -> ir.Value:
    """-(1/N) sum_i p_T log p_S, summed over classes: a student's loss (DFQF, equation 2).

    The generator's adversarial loss (equation 8) is the same with the opposite sign.

    Args:
        parts: takes the nodes.
        student: logits, (samples, classes), maybe with trailing dimensions of 1.
        teacher: likewise.
    """
    logs, others = (
        parts.op("LogSoftmax", parts.op("Flatten", each, axis=1), axis=-1)
        for each in (student, teacher)
    )
    products = parts.op("Mul", parts.op("Exp", others), logs)
    return parts.op("Neg", parts.mean(parts.sum(products, [1]), None))


def batch_norm_moments(parts: Parts, tensor: ir.Value, norm: BatchNorm) -> ir.Value:
    """Mean over channels of v' - v log v' + (m' - m)^2, less its minimum, v - v log v.

    Li et al., DFQF, 2020, equation 7: m' and v' are mean and variance of the batch, m and v the
    running ones. Zero where they are equal.
    """
    mean, variance = _statistics(parts, tensor, norm)
    stored = norm.variance.astype(np.float64) + norm.epsilon
    least = parts.constant((stored - stored * np.log(stored)).astype(np.float32))
    logs = parts.op("Mul", parts.constant(stored.astype(np.float32)), parts.op("Log", variance))
    spread = parts.op("Sub", parts.op("Sub", variance, logs), least)
    shift = parts.square(parts.op("Sub", mean, parts.constant(norm.mean)))
    return parts.mean(parts.op("Add", spread, shift), None)


def batch_norm_divergence(parts: Parts, tensor: ir.Value, norm: BatchNorm) -> ir.Value:
    """Mean over channels of KL(N(m', v') || N(m, v)), in nats.

    Li et al., DFQF, 2020, equation 6: ((v' + (m' - m)^2) / v - 1 - log(v' / v)) / 2. Unlike
    equation 7 it does not depend on the scale of a channel.
    """
    mean, variance = _statistics(parts, tensor, norm)
    stored = norm.variance + np.float32(norm.epsilon)
    inverse = parts.constant((1 / stored).astype(np.float32))
    ratio = parts.op("Mul", variance, inverse)
    shift = parts.op("Mul", parts.square(parts.op("Sub", mean, parts.constant(norm.mean))), inverse)
    spread = parts.op("Sub", parts.op("Sub", ratio, parts.op("Log", ratio)), parts.scalar(1.0))
    return parts.op("Mul", parts.mean(parts.op("Add", spread, shift), None), parts.scalar(0.5))


def _statistics(parts: Parts, tensor: ir.Value, norm: BatchNorm) -> tuple[ir.Value, ir.Value]:
    """Mean and variance plus epsilon of each channel over the batch, (channels,) each."""
    others = [axis for axis in range(norm.rank) if axis != 1]
    mean = parts.mean(tensor, others, keep=True)
    squares = parts.square(parts.op("Sub", tensor, mean))
    variance = parts.op("Add", parts.mean(squares, others), parts.scalar(norm.epsilon))
    return parts.op("Reshape", mean, parts.integers([-1])), variance


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
        kernels: whose kernels compute gradients.
    """

    def __init__(
        self,
        model: ir.Model,
        space: ImageSpace,
        objective: SynthesisObjective,
        rate: float = RATE,
        kernels: EngineName = AUTO,
    ) -> None:
        self._space, self._rate, self._kinds = space, rate, objective.kinds
        terms = [term_name(kind) for kind in self._kinds]
        self._engine = Engine(objective.attach(model), [space.name], LOSS, terms, kernels=kernels)

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
