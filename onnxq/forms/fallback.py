"""Mixed-precision fallback: which tensors lose most by their 8 bits.

Spectra, filter banks and heads with rare peaks span more than 256 levels resolve. The cost of each
tensor is measured on the float model with a gated fake-quant node on every tensor,

    y = x + gate (fake_quant(x) - x),

so one session measures any set of them. Errors of different tensors add up nearly as squares. The
tensors that cost most are kept in float until the rest costs little enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.calibrate.calibrator import infinite_tensors
from onnxq.forms.variant import Quantize, Variant
from onnxq.graph.editor import insert_behind
from onnxq.graph.facts import values_by_name
from onnxq.graph.fake_quant import add_functions, call
from onnxq.plan import make_plan
from onnxq.plan.layers import WIDE
from onnxq.plan.regions import FALLBACK_REASON
from onnxq.plan.spec import Plan, TensorSpec
from onnxq.progress import Progress
from onnxq.runtime.costs import stage
from onnxq.runtime.dataset import Dataset
from onnxq.student.qparams import QParams, range_feeds, range_inputs
from onnxq.train.held_out import HeldOut
from onnxq.train.objective import Objective

SAMPLES = 4
"""Held-out samples that each tensor is tried on."""

GATE = ".gate"


ERROR_LIMIT = 0.1
"""Largest relative RMSE of the outputs without fallback: 20 dB."""

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
    """The error of the outputs when a set of tensors is quantized.

    Args:
        model: the float model; it isn't changed.
        plan: its plan.
        qparams: the ranges of the plan's tensors.
        objective: the loss of the outputs.
        samples: the held-out samples, joined with the teacher's outputs.
    """

    def __init__(
        self,
        model: ir.Model,
        plan: Plan,
        qparams: QParams,
        objective: Objective,
        samples: Dataset,
    ) -> None:
        self._tensors = list(plan.tensors)
        self._judge = HeldOut(objective.attach(gate_tensors(model, plan)), samples, objective)
        count = min(SAMPLES, len(samples))
        self._indices = np.linspace(0, len(samples) - 1, count).astype(np.int64)
        self._ranges = range_feeds(plan.tensors.values(), qparams)
        self._order: list[str] = []

    def error(self, tensors: Sequence[str]) -> float:
        """The relative RMSE of the outputs when these tensors are quantized and no others."""
        chosen = set(tensors)
        gates = {n + GATE: np.asarray(np.float32(n in chosen)) for n in self._tensors}
        return self._judge.score({**self._ranges, **gates}, self._indices, SAMPLES // 2)

    def order(self, on_tensor: Callable[[int], None] | None = None) -> list[str]:
        """The tensors, the costliest first; measured once."""
        if not self._order:
            alone = {}
            for number, name in enumerate(self._tensors, 1):
                alone[name] = self.error([name])
                if on_tensor is not None:
                    on_tensor(number)
            self._order = sorted(self._tensors, key=lambda name: -alone[name])
        return self._order

    def to_fall_back(self, target: float) -> frozenset[str]:
        """The fewest costliest tensors to keep in float for an error of the others <= target."""
        order = self.order()
        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            if self.error(order[middle:]) <= target:
                high = middle
            else:
                low = middle + 1
        return frozenset(order[:low])


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


FALLBACK_SHARES = (0.7, 0.3, 0.1, 0.03)
"""Shares of the error limit that quantized activations may cause, tried in turn."""

WORTHLESS_GAIN = 1.2
"""The fallback with the fewest float tensors is taken whose score is within this ratio of the
best."""


@stage("fallback")
def fall_back(variant: Variant, quantize: Quantize, progress: Progress) -> Variant:
    """The variant after mixed-precision fallback.

    Where the outputs are further than `error_limit` from the float ones, the tensors that cost most
    (see `Sensitivity`) are kept in float, as few as bring the error below the limit.

    Args:
        variant: the best form.
        quantize: quantizes it again: plan, calibrate, student.
        progress: told how far the measurement of the tensors is.
    """
    limit = error_limit(variant.model)
    if not variant.recipe.fallback or variant.score <= limit or not variant.student.plan.tensors:
        return variant
    if not quantize.has_time():
        return variant
    form = (variant.name, variant.model, variant.recipe)
    # Which layers are smaller as integers depends on the tensors that are: any may be among them.
    plan = make_plan(variant.model, variant.recipe, infinite_tensors(variant.statistics))
    same = plan.tensors == variant.student.plan.tensors
    every = variant if same else quantize(*form, variant.statistics, every_layer=True)
    plan = every.student.plan
    sensitivity = Sensitivity(
        every.model, plan, every.qparams, every.objective, every.held_out_outputs
    )
    progress.start("find the tensors that need more than 8 bits", len(plan.tensors))
    sensitivity.order(progress.at)
    progress.finish()
    found, tried = [variant], frozenset[str]()
    for share in FALLBACK_SHARES:
        names = sensitivity.to_fall_back(share * limit)
        if names != tried:
            tried = names
            found.append(quantize(*form, every.statistics, names))
        if found[-1].score <= limit or not quantize.has_time():
            break
    # Weights alone may cost more than the limit: what gains little is not worth floats.
    enough = max(limit, WORTHLESS_GAIN * min(each.score for each in found))
    return next(each for each in found if each.score <= enough)


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
