"""Ranges of activations: clipped for the least squared error, or whole, as held-out samples say.

A range of least squared error cuts rare peaks off. A classifier's decisions hardly depend on them,
but the peaks of a detector's tensors are what it detects: cut, they can't become a high score.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from itertools import product

import numpy as np
import onnx_ir as ir

from onnxq.forms.variant import Variant
from onnxq.graph.facts import is_op, values_by_name
from onnxq.graph.operators import is_data_movement
from onnxq.numerics.quantizers import Range
from onnxq.options.recipe import Recipe
from onnxq.runtime.costs import stage

SAMPLES = 16
"""Held-out samples that ranges are compared on."""

SWISH_FLOORS = {"Sigmoid": -5.0, "HardSigmoid": -3.0}
"""The value below which x Sigmoid(x) is nearly 0, or 0: lower ones need no integers of their own.
"""


HEADROOM = 5.0
"""The least upper end of the range of logits before a Sigmoid, which makes 0.993 of it: a score
above those that samples had can appear."""


@stage("choose ranges")
def choose_ranges(variant: Variant) -> Variant:
    """The variant with the range of each kind of tensor that has the lowest held-out loss.

    Tensors are of one kind that the same operator writes. Ranges without what a swish maps to
    nearly 0, clipped or whole, are tried for all tensors, then for one kind after the other.
    Ranges of logits before an output's Sigmoid have headroom for higher scores. Classifiers keep
    ranges of least squared error, and so does a recipe that names another method or fewer bits, or
    searches.
    """
    plan = variant.student.plan
    if not plan.tensors or variant.objective.decision is not None or not _may(variant.recipe):
        return variant
    held_out = variant.held_out()
    count = min(SAMPLES, len(variant.held_out_outputs))
    indices = np.linspace(0, len(variant.held_out_outputs) - 1, count).astype(np.int64)

    def score(ranges: Mapping[str, Range]) -> float:
        feeds = variant.student.feeds(variant.qparams.with_ranges(ranges))
        return held_out.score(feeds, indices)

    clipped = {name: variant.qparams.ranges[name] for name in plan.tensors}
    whole = variant.full_ranges()
    floors = swish_floors(variant.model, plan.tensors)
    heads = score_heads(variant.model, plan.tensors)
    clipped, whole = ({**each, **_with_headroom(each, heads)} for each in (clipped, whole))
    best, ranges = score(clipped), clipped
    clipped, whole = ({**each, **_raised(each, floors)} for each in (clipped, whole))
    groups = [list(plan.tensors), *_by_operator(variant.model, plan.tensors)]
    for names, source in product(groups, (clipped, whole)):
        tried = {**ranges, **{name: source[name] for name in names}}
        if tried != ranges and (found := score(tried)) < best:
            best, ranges = found, tried
    qparams = variant.qparams.with_ranges(ranges)
    after = variant.score_of(qparams)
    if after >= variant.score and not heads:
        return variant
    return replace(variant, qparams=qparams, score=after, tuned=True)


def _may(recipe: Recipe) -> bool:
    """Whether no other method, nor fewer bits, are asked for."""
    default = Recipe()
    names = ("calibration", "activation_bits", "symmetric", "layers")
    same = all(getattr(recipe, name) == getattr(default, name) for name in names)
    return same and not recipe.searches


def swish_floors(model: ir.Model, tensors: Collection[str]) -> dict[str, float]:
    """The floor of each tensor x that is read by y = x Sigmoid(x), or x HardSigmoid(x), alone."""
    values = values_by_name(model.graph)
    found = {name: _floor(values[name]) for name in tensors}
    return {name: floor for name, floor in found.items() if floor is not None}


def _floor(value: ir.Value) -> float | None:
    readers = list(value.consumers())
    gates = [node for node in readers if is_op(node, *SWISH_FLOORS)]
    products = [node for node in readers if is_op(node, "Mul")]
    if len(gates) != 1 or len(products) != 1 or len(readers) != len(gates) + len(products):
        return None
    (gate,), (product,) = gates, products
    swish = set(product.inputs) == {value, gate.outputs[0]} and len(gate.outputs[0].uses()) == 1
    return SWISH_FLOORS[gate.op_type] if swish and not value.is_graph_output() else None


def _raised(ranges: Mapping[str, Range], floors: Mapping[str, float]) -> dict[str, Range]:
    """The ranges that reach below their floor, from it on."""
    raised = {}
    for name, floor in floors.items():
        low, high = float(ranges[name].lowest), float(ranges[name].lowest + ranges[name].width)
        if low < floor and high > 0:
            raised[name] = Range(floor, high - floor)
    return raised


def score_heads(model: ir.Model, tensors: Collection[str]) -> list[str]:
    """The tensors of logits: moved and joined at most, they pass a Sigmoid and are an output."""
    values = values_by_name(model.graph)

    def is_output(gate: ir.Node) -> bool:
        return gate.outputs[0].is_graph_output() or any(_met(gate.outputs[0], None))

    return [name for name in tensors if any(map(is_output, _met(values[name], "Sigmoid")))]


def _met(value: ir.Value, wanted: str | None) -> Iterator[ir.Node]:
    """The nodes of an operator, or those that write outputs, that a value is moved to."""
    for node in value.consumers():
        if node.op_type == wanted:
            yield node
        elif is_data_movement(node) or is_op(node, "Concat", "Identity"):
            if wanted is None and any(out.is_graph_output() for out in node.outputs):
                yield node
            for out in node.outputs:
                yield from _met(out, wanted)


def _with_headroom(ranges: Mapping[str, Range], heads: Collection[str]) -> dict[str, Range]:
    """The ranges of logits, which reach up to `HEADROOM` at least."""
    found = {}
    for name in heads:
        low, width = float(ranges[name].lowest), float(ranges[name].width)
        found[name] = Range(ranges[name].lowest, max(width, HEADROOM - low))
    return found


def _by_operator(model: ir.Model, tensors: Collection[str]) -> list[list[str]]:
    """The tensors, by the operator that writes them."""
    values, found = values_by_name(model.graph), dict[str, list[str]]()
    for name in tensors:
        node = values[name].producer()
        found.setdefault("" if node is None else node.op_type, []).append(name)
    return list(found.values())
