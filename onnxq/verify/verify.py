"""Measure the exported model against the original: outputs, size, kernels, latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxq.data.samples import Samples
from onnxq.errors import reason_of
from onnxq.load.float_types import has_other_floats
from onnxq.load.model import runnable
from onnxq.load.read import file_bytes, model_files, read_graph
from onnxq.numerics.qparams import IntArray, may_saturate
from onnxq.plan import Plan
from onnxq.progress import Progress
from onnxq.runtime.session import SessionPool
from onnxq.train.logits import compared_tensors
from onnxq.verify.benchmark import measure_latency
from onnxq.verify.exported import shipped_files, stored_array, with_outputs
from onnxq.verify.kernels import read_kernels
from onnxq.verify.metrics import Metrics
from onnxq.verify.outputs import compare_outputs, probability_outputs

IN_FLOAT32 = (
    "ONNX Runtime does not run the original's float types on a CPU; its latency is that of the "
    "same model in float32"
)


@dataclass(frozen=True)
class Exported:
    """What is measured.

    Attributes:
        original: the file that the user gave.
        teacher: the original, normalised.
        student: makes the student with its numbers as constants, which holds all of them in float.
        model: the exported model.
        plan: the plan behind it.
    """

    original: Path
    teacher: ir.Model
    student: Callable[[], ir.Model]
    model: ir.Model
    plan: Plan


def verify(exported: Exported, samples: Samples, batch_size: int, progress: Progress) -> Metrics:
    """The metrics of an exported model on samples that nothing was learned on.

    Args:
        exported: the models to compare.
        samples: the held-out slice, in the batches that the original takes.
        batch_size: samples in one run; fixed, so that sums don't depend on the machine.
        progress: told where the work stands.
    """
    progress.start("verify", 2 * len(samples))
    probabilities = probability_outputs(exported.teacher)
    tensors = compared_tensors(exported.teacher)
    candidate = _pool(exported.model, tensors)
    against_original = compare_outputs(
        _pool(exported.teacher, tensors),
        candidate,
        samples,
        probabilities,
        batch_size=batch_size,
        on_batch=progress.at,
    )
    student = exported.student()
    against_student = compare_outputs(
        _pool(student, tensors),
        candidate,
        samples,
        probabilities,
        batch_size=batch_size,
        on_batch=lambda done: progress.at(len(samples) + done),
    )
    saturating = _saturating_layers(exported)
    # What follows opens sessions of its own.
    del candidate, student
    metrics = _static_metrics(exported, saturating)
    metrics.agreement = against_original.agreement
    metrics.kl = against_original.kl
    metrics.estimated_drop = against_original.estimated_drop
    metrics.estimated_drop_error = against_original.estimated_drop_error
    metrics.sqnr_db = against_original.sqnr_db
    metrics.student_agreement = against_student.agreement
    _add_latency(metrics, exported, samples)
    progress.finish()
    return metrics


def _pool(model: ir.Model, tensors: Sequence[str]) -> SessionPool:
    """A session that gives these tensors; the model itself where they are among its outputs."""
    if set(tensors) <= {value.name for value in model.graph.outputs}:
        return SessionPool(model, tensors)
    return SessionPool(with_outputs(model, tensors), tensors)


def _static_metrics(exported: Exported, saturating: list[str]) -> Metrics:
    plan = exported.plan
    kernels = read_kernels(exported.model, plan)
    return Metrics(
        size_before=file_bytes(exported.original),
        size_after=0,
        shipped_before=shipped_files(model_files(exported.original)),
        codebooks={s.name: s.codebook for s in plan.layers.values() if s.codebook is not None},
        narrow={s.name: s.num_bits for s in plan.layers.values() if s.narrow},
        layers=len(plan.layers),
        integer_layers=len(kernels.integer_layers()),
        kernels=kernels.layers,
        saturating=saturating,
        float_nodes=kernels.float_nodes,
        weight_only={s.name: s.reason for s in plan.layers.values() if s.reason},
        left_alone=dict(plan.left_alone),
    )


def _saturating_layers(exported: Exported) -> list[str]:
    nodes = {str(node.name): node for node in exported.model.graph}
    names = []
    for spec in exported.plan.integer_layers():
        if spec.int4:
            continue  # no integer kernel reads INT4
        codes = _codes(nodes[spec.name])
        if may_saturate(codes, spec.channel_axis):
            names.append(spec.name)
    return names


def _codes(layer: ir.Node) -> IntArray:
    """The integers of a layer's weight, which its DequantizeLinear reads."""
    assert layer.inputs[1] is not None
    dequantize = layer.inputs[1].producer()
    assert dequantize is not None
    codes = stored_array(dequantize.inputs[0])
    assert codes is not None
    return codes


def _add_latency(metrics: Metrics, exported: Exported, samples: Samples) -> None:
    """Time both files, or note why that can't be done: the result is none the worse for it."""
    feeds = next(samples.batches(1))
    try:
        graph = read_graph(exported.original)
        in_other_floats = has_other_floats(graph)
        original = runnable(exported.original, graph)
        if in_other_floats and isinstance(original, ir.Model):
            metrics.notes.append(IN_FLOAT32)
        # The compressed one first: it takes more memory while it opens.
        after, before = measure_latency([exported.model, original], feeds)
    except Exception as error:
        # ONNX Runtime's exceptions share no base class but Exception.
        metrics.notes.append(f"latency was not measured: a model does not run ({reason_of(error)})")
        return
    metrics.latency_before_ms, metrics.latency_before_spread_ms = before.median_ms, before.spread_ms
    metrics.latency_after_ms, metrics.latency_after_spread_ms = after.median_ms, after.spread_ms
