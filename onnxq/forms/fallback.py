"""Mixed-precision fallback: which tensors lose most by their 8 bits.

Spectra, filter banks and heads with rare peaks span more than 256 levels resolve. The cost of each
tensor is measured on the float model with a gated fake-quant node on every tensor,

    y = x + gate (fake_quant(x) - x),

so one session measures any set of them. Errors of different tensors add up nearly as squares. A
tensor in float takes the layers around it out of the integers: those that gain most for each such
layer are kept in float until the rest costs little enough.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxq.calibrate.calibrator import TensorStatistics, infinite_tensors
from onnxq.forms.variant import Quantize, Variant
from onnxq.graph.editor import insert_behind
from onnxq.graph.facts import values_by_name
from onnxq.graph.fake_quant import add_functions, call
from onnxq.options.recipe import Recipe
from onnxq.plan import make_plan
from onnxq.plan.layers import WIDE
from onnxq.plan.regions import FALLBACK_REASON
from onnxq.plan.spec import Plan, TensorSpec
from onnxq.progress import Progress
from onnxq.runtime.costs import stage
from onnxq.student.qparams import range_feeds, range_inputs
from onnxq.train.held_out import HeldOut

SAMPLES = 4
"""Held-out samples that each tensor is tried on."""

GATE = ".gate"


ERROR_LIMIT = 0.08
"""Largest relative RMSE of the outputs without fallback: 22 dB, so that none is far below 20."""

DECISION_LIMIT = 0.5
"""The same for a classifier: its decisions tolerate more, and training lowers the error."""


def error_limit(model: ir.Model) -> float:
    """The relative RMSE of the outputs above which the fallback starts."""
    return DECISION_LIMIT if all(map(_holds_classes, model.graph.outputs)) else ERROR_LIMIT


def _holds_classes(output: ir.Value) -> bool:
    """Whether the output is (batch, classes) or not a float at all."""
    if output.dtype != ir.DataType.FLOAT:
        return True
    shape = output.shape
    if shape is None or len(shape) != 2:
        return False
    classes = shape[1]
    return isinstance(classes, int) and classes > 1


class Sensitivity:
    """The error of the outputs when a set of tensors is quantized, and their weights are not.

    Args:
        variant: the form, its plan and the ranges of its tensors.
    """

    def __init__(self, variant: Variant) -> None:
        plan, objective = variant.student.plan, variant.objective
        samples = variant.held_out_outputs
        self._tensors = list(plan.tensors)
        gated = objective.attach(gate_tensors(variant.model, plan))
        self._held_out = HeldOut(gated, samples, objective)
        count = min(SAMPLES, len(samples))
        self._indices = np.linspace(0, len(samples) - 1, count).astype(np.int64)
        self._ranges = range_feeds(plan.tensors.values(), variant.qparams)

    def error(self, tensors: Collection[str]) -> float:
        """The relative RMSE of the outputs when these tensors are quantized and no others."""
        gates = {n + GATE: np.asarray(np.float32(n in tensors)) for n in self._tensors}
        return self._held_out.score({**self._ranges, **gates}, self._indices, SAMPLES // 2)

    def errors(self, on_tensor: Callable[[int], None] | None = None) -> dict[str, float]:
        """The error of each tensor alone, by name.

        Args:
            on_tensor: called with the number of tensors done.
        """
        alone = {}
        for number, name in enumerate(self._tensors, 1):
            alone[name] = self.error([name])
            if on_tensor is not None:
                on_tensor(number)
        return alone

    def weights_error(self, variant: Variant) -> float:
        """The relative RMSE that the weights cause: of the variant, less that of its tensors."""
        feeds = variant.student.feeds(variant.qparams)
        whole = variant.held_out().score(feeds, self._indices, SAMPLES // 2)
        return math.sqrt(max(whole**2 - self.error(self._tensors) ** 2, 0.0))


@dataclass(frozen=True)
class Footprint:
    """What leaves the integers with a tensor that is kept in float.

    Attributes:
        tensors: names of the tensors that are no longer quantized, or have 8 bits.
        layers: names of the layers that no longer run in integers.
    """

    tensors: frozenset[str]
    layers: frozenset[str] = frozenset()


def footprint(variant: Variant, plan: Plan, tensor: str) -> Footprint:
    """What leaves the integers with one tensor of a plan that quantizes every layer."""
    infinite, fallback = infinite_tensors(variant.statistics), variant.fallback | {tensor}
    without = make_plan(variant.model, variant.recipe, infinite, fallback)
    layers = {s.name for s in plan.integer_layers()} - {s.name for s in without.integer_layers()}
    return Footprint(
        frozenset({tensor, *(plan.tensors.keys() - without.tensors)}), frozenset(layers)
    )


def by_gain(errors: Mapping[str, float], footprints: Mapping[str, Footprint]) -> list[str]:
    """The tensors in the order in which they are kept in float: the most error per layer first.

    Errors add up as squares, and a tensor takes those with it that leave with it.

    Args:
        errors: of each tensor alone.
        footprints: of each tensor.
    """
    order: list[str] = []
    gone = Footprint(frozenset())
    left = list(errors)

    def gain(name: str) -> float:
        with_it = footprints[name]
        fresh = sum(errors[each] ** 2 for each in with_it.tensors - gone.tensors)
        return fresh / (1 + len(with_it.layers - gone.layers))

    while left:
        best = max(left, key=gain)
        order.append(best)
        gone = Footprint(
            gone.tensors | footprints[best].tensors, gone.layers | footprints[best].layers
        )
        left = [name for name in left if name not in gone.tensors]
    return order


def fewest(
    order: Sequence[str],
    footprints: Mapping[str, Footprint],
    error: Callable[[Collection[str]], float],
    target: float,
) -> frozenset[str]:
    """As few tensors, the first of the order, as bring the error of the others to the target.

    Args:
        order: of the tensors, the best to keep in float first.
        footprints: of each tensor.
        error: the error when some tensors are quantized.
        target: the largest error.
    """
    every = dict.fromkeys(name for each in footprints.values() for name in each.tensors)

    def reached(count: int) -> bool:
        gone = {name for each in order[:count] for name in footprints[each].tensors}
        return error([name for name in every if name not in gone]) <= target

    return frozenset(order[: bisect_left(range(len(order)), True, key=reached)])


def gate_tensors(model: ir.Model, plan: Plan) -> ir.Model:
    """A copy of the model with a gated fake-quant node on every tensor of the plan.

    Its further inputs are the range of each tensor and `<tensor>.gate`, 0 or 1.
    """
    copy = model.clone(deep_copy=False)
    graph = copy.graph
    values = values_by_name(graph)
    for spec in plan.tensors.values():
        _gate(graph, values[spec.name], spec)
    add_functions(copy, {(spec.kind, spec.num_bits) for spec in plan.tensors.values()})
    return copy


def _gate(graph: ir.Graph, value: ir.Value, spec: TensorSpec) -> None:
    names = (*range_inputs(spec), spec.name + GATE)
    *parameters, gate = [ir.val(name, ir.DataType.FLOAT, []) for name in names]
    graph.inputs.extend([*parameters, gate])
    readers = list(value.uses())
    quantized = call(spec.kind, spec.num_bits, value, *parameters)
    error = ir.node("Sub", [quantized.outputs[0], value])
    gated = ir.node("Mul", [error.outputs[0], gate])
    result = ir.node("Add", [value, gated.outputs[0]])
    nodes = [quantized, error, gated, result]
    for number, node in enumerate(nodes):
        node.name = f"{spec.name}{GATE}.{number}"
        node.outputs[0].name = f"{node.name}.value"
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    for reader, index in readers:
        reader.replace_input_with(index, result.outputs[0])
    insert_behind(graph, value, nodes)


TARGET_SHARES = (1.0, 0.7, 0.4, 0.1)
"""Shares of the error that quantized tensors may cause, tried in turn."""

WEIGHTS_SHARE = 0.5
"""Share of the weights' own error that tensors may always cause: less is not worth floats."""

WORTHLESS_GAIN = 1.2
"""The fallback with the fewest float tensors is taken whose score is within this ratio of the
best."""

TRAINABLE = 3.0
"""How many times the limit a score may be that training still mends."""


LEARNING_SHARE = 0.6
"""Share of the time by which training ends where tensors are likely to be kept in float then."""


def slack(recipe: Recipe) -> float:
    """The factor of the limit before training: above 1 where fallback follows it too."""
    return TRAINABLE if _follows_training(recipe) else 1.0


def learning_share(variant: Variant) -> float:
    """The share of the time by which training ends."""
    return LEARNING_SHARE if _follows_training(variant.recipe) and _too_far(variant) else 1.0


def after_learning(variant: Variant, quantize: Quantize, progress: Progress) -> Variant:
    """The trained variant after mixed-precision fallback; arguments as of `fall_back`."""
    return fall_back(variant, quantize, progress) if _follows_training(variant.recipe) else variant


def _follows_training(recipe: Recipe) -> bool:
    """Whether tensors are kept in float after training: a search decides before it."""
    return recipe.learn != ("none",) and not recipe.searches


def _too_far(variant: Variant, factor: float = 1.0) -> bool:
    too_far = variant.score > factor * error_limit(variant.model)
    return too_far and variant.recipe.fallback and bool(variant.student.plan.tensors)


@stage("fallback")
def fall_back(
    variant: Variant, quantize: Quantize, progress: Progress, factor: float = 1.0
) -> Variant:
    """The variant after mixed-precision fallback.

    Where the outputs are further than `error_limit` from the float ones, tensors are kept in float,
    as few as bring the error below the limit, and those first that gain most for each layer that
    leaves the integers with them. The others keep what was learned.

    Args:
        variant: the best form.
        quantize: quantizes it again: plan, calibrate, student.
        progress: told how far the measurement of the tensors is.
        factor: of the limit; above 1 where training follows.
    """
    limit = factor * error_limit(variant.model)
    if not _too_far(variant, factor) or not quantize.has_time(measured=True):
        return variant
    every = _with_every_layer(variant, quantize)
    plan = every.student.plan
    sensitivity = Sensitivity(every)
    progress.start("find the tensors that need more than 8 bits", len(plan.tensors))
    errors = sensitivity.errors(progress.at)
    progress.finish()
    footprints = {name: footprint(every, plan, name) for name in plan.tensors}
    order = [name for name in by_gain(errors, footprints) if name not in variant.fallback]
    weights = sensitivity.weights_error(every)
    target = math.sqrt(max(limit**2 - weights**2, (WEIGHTS_SHARE * weights) ** 2))
    found, tried = [variant], variant.fallback
    for share in TARGET_SHARES:
        names = variant.fallback | fewest(order, footprints, sensitivity.error, share * target)
        if names != tried:
            tried = names
            found.append(_again(variant, quantize, every.statistics, names))
        if found[-1].score <= limit or not quantize.has_time(measured=True):
            break
    # Weights alone may cost more than the limit: what gains little is not worth floats.
    enough = max(limit, WORTHLESS_GAIN * min(each.score for each in found))
    return next(each for each in found if each.score <= enough)


def _with_every_layer(variant: Variant, quantize: Quantize) -> Variant:
    """The variant with the layers that are no smaller as integers, any of which may be now.

    Which layers are smaller depends on the tensors that are integers.
    """
    model, recipe, statistics = variant.model, variant.recipe, variant.statistics
    plan = make_plan(model, recipe, infinite_tensors(statistics), variant.fallback)
    if plan.tensors == variant.student.plan.tensors:
        return variant
    return _again(variant, quantize, statistics, variant.fallback, every_layer=True)


def _again(
    variant: Variant,
    quantize: Quantize,
    statistics: Mapping[str, TensorStatistics],
    fallback: frozenset[str],
    *,
    every_layer: bool = False,
) -> Variant:
    """The form with other tensors in float, and with what was learned of all that it still has."""
    # What was trained has its biases already.
    recipe = replace(variant.recipe, bias_correction=False) if variant.tuned else variant.recipe
    found = quantize(
        variant.name, variant.model, recipe, statistics, fallback, every_layer=every_layer
    )
    if not variant.tuned:
        return found
    # A tensor that has more bits now needs another range.
    fresh = [name for name in fallback - variant.fallback if name in found.qparams.ranges]
    ranges = {name: found.qparams.ranges[name] for name in fresh}
    qparams = found.qparams.with_known(variant.qparams).with_ranges(ranges)
    score, own = found.score_of(qparams), variant.recipe
    return replace(
        found, recipe=own, qparams=qparams, score=score, corrected=variant.corrected, tuned=True
    )


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
