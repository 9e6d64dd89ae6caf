"""Training by gradients: some parameters are trained, the rest of the student is frozen."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol

import numpy as np

from onnxq.engine import Engine, ungradable_nodes
from onnxq.forms.variant import Variant
from onnxq.learn.codebooks import CodebookTables
from onnxq.learn.frozen import TrainableSuffix, freeze
from onnxq.learn.ranges import StepSizes, ThresholdScales
from onnxq.learn.weights import FreeValues, LatentWeights
from onnxq.numerics.corrections import shift_weight_gradient
from onnxq.numerics.quantizers import FloatArray, Range
from onnxq.plan.spec import LayerSpec, Plan
from onnxq.progress import Progress
from onnxq.runtime.dataset import Joined
from onnxq.runtime.session import Arrays
from onnxq.runtime.temporary import temporary_folder
from onnxq.student.qparams import QParams, bias_name, needs_bias
from onnxq.student.student import Student
from onnxq.train.augment import Transform
from onnxq.train.budget import Budget, sized_for
from onnxq.train.checkpoint import Checkpoint
from onnxq.train.held_out import HeldOut, Learned, Score
from onnxq.train.loop import Loop
from onnxq.train.objective import LOSS, Objective, choose_objective

NONE_KNOWN: Mapping[str, int] = MappingProxyType({})


class Part(Protocol):
    """Some trained values, the parameters that they stand for, and their chain rule.

    Attributes:
        group: the option of `learn` that they belong to; it has its own learning rate.
        values: float32 arrays by key, scaled so that one learning rate serves all.
        units: what a value of 1 means for the real parameter, by key.
    """

    group: str
    values: dict[str, np.ndarray]
    units: dict[str, FloatArray | np.float32]

    def project(self) -> None:
        """Clip every value to its bounds, in place."""

    def qparams(self, base: QParams) -> QParams:
        """The quantization parameters with the trained ones replaced."""

    def parameter_names(self) -> list[str]:
        """The student's inputs whose gradients are needed."""

    def gradients(self, found: Mapping[str, np.ndarray], now: QParams) -> dict[str, np.ndarray]:
        """dL/d value by key, from dL/d input by the student's input name at these parameters."""


def make_parts(
    learns: Set[str],
    plan: Plan,
    start: QParams,
    full_ranges: Mapping[str, Range],
    elements: Mapping[str, int] = NONE_KNOWN,
) -> list[Part]:
    """The parts for the options of `learn`; parts without values are left out.

    Args:
        learns: the options.
        plan: the plan.
        start: the quantization parameters to start from.
        full_ranges: the range of all values that calibration saw, by tensor name.
        elements: elements of each tensor in one sample, by name, where known.
    """
    layers, floats = plan.product_layers(), list(plan.float_layers.values())
    parts: list[Part] = []
    if "thresholds" in learns:
        parts.append(ThresholdScales(plan, start, full_ranges))
    if "steps" in learns:
        parts.append(StepSizes(plan, start, elements))
    if "weights" in learns:
        # After the steps, which weights on their grid go along with.
        parts.append(LatentWeights(layers, start))
    if "codebooks" in learns:
        parts.append(CodebookTables(plan, start))
    if "float-layers" in learns:
        parts.append(FreeValues(start, floats, _biased(floats)))
    if learns & {"biases", "weights"}:
        parts.append(FreeValues(start, [], _biased(layers), "biases"))
    return [part for part in parts if part.values]


def _biased(layers: Sequence[LayerSpec]) -> list[LayerSpec]:
    return [spec for spec in layers if needs_bias(spec)]


class Trained:
    """The values of all parts, and the quantization parameters that they stand for.

    Args:
        parts: the parts; their keys differ.
        plan: the plan.
        start: the quantization parameters to start from.

    Attributes:
        values: the arrays of the parts, by key.
        groups: the option of `learn` that each belongs to, by key.
        names: the student's inputs whose gradients are needed.
    """

    def __init__(self, parts: Sequence[Part], plan: Plan, start: QParams) -> None:
        self._parts, self._start = parts, start
        self.values = {key: value for part in parts for key, value in part.values.items()}
        self.groups = {key: part.group for part in parts for key in part.values}
        names = dict.fromkeys(name for part in parts for name in part.parameter_names())
        self._corrected = [
            s for s in plan.layers.values() if s.name in start.means and s.weight in names
        ]
        self.names = list(names | dict.fromkeys(bias_name(spec) for spec in self._corrected))
        self.project()

    def project(self) -> None:
        """Clip every value to its bounds, in place."""
        for part in self._parts:
            part.project()

    def qparams(self) -> QParams:
        """The quantization parameters that the values stand for."""
        found = self._start
        for part in self._parts:
            found = part.qparams(found)
        return found

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        """Set every value, in place."""
        for key, value in self.values.items():
            value[...] = values[key]

    def real_rates(self) -> dict[str, FloatArray | float]:
        """The rate by key with which gradient descent moves the real parameter at rate 1.

        With real = unit * value, that is 1 / unit^2, times LSQ's factor for step sizes.
        """
        rates: dict[str, FloatArray | float] = {}
        for part in self._parts:
            damping = part.damping if isinstance(part, StepSizes) else {}
            for key in part.values:
                rate = damping.get(key, 1.0) / np.square(part.units[key], dtype=np.float64)
                rates[key] = np.asarray(rate, np.float32)
        return rates

    def gradients(
        self, found: Mapping[str, np.ndarray], now: QParams | None = None
    ) -> dict[str, np.ndarray]:
        """dL/d value by key; gradients of corrected biases flow back to their weights.

        Args:
            found: dL/d input by the student's input name.
            now: the quantization parameters at which they were computed; None means the current
                ones.
        """
        total = dict(found)
        now = now or self.qparams()
        for spec in self._corrected:
            factor = self._start.factors.get(spec.name, np.float32(1))
            through_bias = shift_weight_gradient(
                found[bias_name(spec)] * factor,
                self._start.means[spec.name],
                found[spec.weight].shape,
                spec.op_type,
                spec.channel_axis,
            )
            total[spec.weight] = total[spec.weight] + through_bias
        return {k: g for part in self._parts for k, g in part.gradients(total, now).items()}


class Learning(Loop[Learned]):
    """One run of training a student.

    Args:
        student: the student.
        suffix: the loss graph to run, and its feeds.
        objective: the loss.
        start: the quantization parameters to start from.
        trained: the trained values, at their start.
        budget: how long and how fast.
        checkpoint: None keeps none.
        transform: how the training samples change in each epoch; None leaves them unchanged.
    """

    def __init__(
        self,
        student: Student,
        suffix: TrainableSuffix,
        objective: Objective,
        start: QParams,
        trained: Trained,
        budget: Budget,
        checkpoint: Checkpoint | None = None,
        transform: Transform | None = None,
    ) -> None:
        self._student, self._parts, self._now = student, trained, start
        self._constants = suffix.constants
        self._held_out = HeldOut(suffix.model, suffix.held_out, objective)
        self._moving = student.moving_inputs(trained.names)
        engine = Engine(suffix.model, trained.names, LOSS, kernels=budget.engine)
        scored = self._judge_taken()
        history = Learned(scored.score, scored.score, unit=objective.unit, qparams=start)
        super().__init__(
            engine, suffix.train, objective, trained, budget, scored, history, checkpoint,
            transform,
        )  # fmt: skip

    def _feeds(self) -> Arrays:
        return {**self._constants, **self._student.feeds(self._now, self._moving)}

    def _begin(self) -> None:
        if self._transform is not None:
            self._transform.begin(self._parts.qparams(), self._late)

    def _parameters(self) -> Arrays:
        self._take()
        return self._feeds()

    def _chained(self, found: Mapping[str, np.ndarray]) -> Arrays:
        return self._parts.gradients(found, self._now)

    def _take(self) -> None:
        self._now = self._parts.qparams()

    def _judge_taken(self) -> Score:
        return self._held_out.evaluate(self._feeds())

    def _keep(self) -> None:
        self._result.qparams = self._now


NO_GAIN = "did not beat its starting point on the held-out samples, which is kept"
NO_CLASSIFIER = (
    "the outputs were matched and not distilled, since they are not the logits of one classifier"
)
TOO_FAST = f"{NO_GAIN}; the error became much larger: try a smaller --lr"
MUCH = 1.1
"""Ratio to the error at the start above which the learning rate is to blame."""


def train_parameters(
    variant: Variant,
    train: Joined,
    wanted: frozenset[str],
    budget: Budget,
    progress: Progress,
    checkpoint: Checkpoint | None,
    resume: bool,
    transform: Transform | None,
) -> Learned:
    """A variant's quantization parameters, some trained together; arguments as of `learn`."""
    began = time.monotonic()
    student, start = variant.student, variant.qparams
    kept = Learned(variant.score, variant.score, qparams=start)
    if "weights" in wanted:
        start = student.with_corrections_kept(start)
    parts = make_parts(wanted, student.plan, start, variant.full_ranges(), variant.elements())
    if not parts:
        return kept
    trained = Trained(parts, student.plan, start)
    objective = choose_objective(variant.objective, distil=budget.distils())
    loss_model = sized_for(objective.attach(student.model), train.parts[0])
    refused = ungradable_nodes(loss_model, trained.names)
    if refused:
        node, op_type, reason = refused[0]
        kept.notes.append(
            f"the student was calibrated but not learned: '{node}' ({op_type}) has no gradient "
            f"({reason})"
        )
        return kept
    with temporary_folder() as folder:
        moving = student.moving_inputs(trained.names)
        feeds = student.feeds(start)
        fixed = {name: value for name, value in feeds.items() if name not in moving}
        slices = (train, variant.held_out_outputs)
        keep = transform is None
        suffix = freeze(loss_model, fixed, moving, slices, folder, progress, keep=keep)
        setup = time.monotonic() - began
        budget = replace(budget, max_seconds=max(0.0, budget.max_seconds - setup))
        learning = Learning(
            student, suffix, objective, start, trained, budget, checkpoint, transform
        )
        learned = learning.run(progress, resume)
        learned.seconds += setup
    learned.notes += [note for note in (suffix.note,) if note]
    if budget.loss == "distillation" and variant.objective.decision is None:
        learned.notes.append(NO_CLASSIFIER)
    if not learned.improved:
        learned.qparams = variant.qparams
        lowest = min(learned.history, default=0.0)
        result = TOO_FAST if lowest > MUCH * learned.start_score else NO_GAIN
        learned.notes.append(f"learning of {' and '.join(sorted(wanted))} {result}")
    elif "weights" in wanted:
        learned.qparams = student.with_weights_on_grid(learned.qparams)
    return learned
