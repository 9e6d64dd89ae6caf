"""Verification of the exported model against the original: outputs, size, kernels, latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxq.errors import reason_of
from onnxq.graph.meanings import find_meanings
from onnxq.load.float_types import has_other_floats
from onnxq.load.model import runnable
from onnxq.load.read import read_graph
from onnxq.numerics.quantizers import IntArray, may_saturate
from onnxq.options.table import AUTO, Task
from onnxq.plan import Plan
from onnxq.progress import Progress
from onnxq.runtime.dataset import Samples, first
from onnxq.runtime.session import SessionPool
from onnxq.train.objective import compared_tensors
from onnxq.verify.benchmark import Latency, measure_latency
from onnxq.verify.kernels import Kernels, read_kernels
from onnxq.verify.opened import stored_array, with_outputs
from onnxq.verify.outputs import Comparison, compare_outputs, probability_outputs

IN_FLOAT32 = (
    "ONNX Runtime does not run the original's float types on a CPU; its latency is that of the "
    "same model in float32"
)


@dataclass(frozen=True)
class Exported:
    """The models that verification compares.

    Attributes:
        original: the user's file.
        teacher: the original, normalised.
        student: makes the student with its parameters as float constants.
        model: the exported model.
        plan: the plan behind it.
        task: what the outputs are for; 'auto' finds it from the teacher.
    """

    original: Path
    teacher: ir.Model
    student: Callable[[], ir.Model]
    model: ir.Model
    plan: Plan
    task: Task = AUTO


@dataclass(frozen=True)
class Measurements:
    """What was measured on an exported model.

    Attributes:
        outputs: how its outputs differ from the original's.
        student_agreement: share of the samples on which it decides as the student did.
        kernels: what ONNX Runtime runs.
        saturating: names of the integer layers whose 16-bit sums may overflow.
        latency: of the original and of the exported model; None where one of them does not run.
        notes: sentences for the user.
    """

    outputs: Comparison
    student_agreement: float | None
    kernels: Kernels
    saturating: list[str]
    latency: tuple[Latency, Latency] | None
    notes: list[str]


def verify(
    exported: Exported, samples: Samples, batch_size: int, progress: Progress
) -> Measurements:
    """The metrics of an exported model on held-out samples.

    Args:
        exported: the models to compare.
        samples: the held-out samples, in batches that the original takes.
        batch_size: samples in one run; fixed, so that sums don't depend on the machine.
        progress: told where the work stands.
    """
    progress.start("verify", 2 * samples.count)
    outputs, student_agreement = _compare(exported, samples, batch_size, progress)
    saturating = _saturating_layers(exported)
    kernels = read_kernels(exported.model, exported.plan)
    latency, notes = _time(exported, samples)
    progress.finish()
    return Measurements(outputs, student_agreement, kernels, saturating, latency, notes)


def _compare(
    exported: Exported, samples: Samples, batch_size: int, progress: Progress
) -> tuple[Comparison, float | None]:
    """The outputs held against the original's, and the agreement with the student."""
    probabilities = probability_outputs(exported.teacher)
    meanings = find_meanings(exported.teacher.graph, exported.task)
    tensors = compared_tensors(exported.teacher)
    candidate = _pool(exported.model, tensors)

    def compared(reference: SessionPool, done_before: int) -> Comparison:
        return compare_outputs(
            reference,
            candidate,
            samples,
            probabilities,
            meanings,
            batch_size=batch_size,
            on_batch=lambda done: progress.at(done_before + done),
        )

    outputs = compared(_pool(exported.teacher, tensors), 0)
    student = _pool(exported.student(), tensors, merge=False)
    return outputs, compared(student, samples.count).agreement


def _pool(model: ir.Model, tensors: Sequence[str], *, merge: bool = True) -> SessionPool:
    """A session whose outputs are these tensors; the model is copied only where it lacks one."""
    whole = set(tensors) <= {value.name for value in model.graph.outputs}
    model = model if whole else with_outputs(model, tensors)
    return SessionPool(model, tensors, merge=merge)


def _saturating_layers(exported: Exported) -> list[str]:
    nodes = {str(node.name): node for node in exported.model.graph}
    names = []
    for spec in exported.plan.integer_layers():
        if spec.int4:
            continue  # no integer kernel reads INT4
        if may_saturate(_integers(nodes[spec.name]), spec.channel_axis):
            names.append(spec.name)
    return names


def _integers(layer: ir.Node) -> IntArray:
    """The integer weights of a layer, which its DequantizeLinear reads."""
    assert layer.inputs[1] is not None
    dequantize = layer.inputs[1].producer()
    assert dequantize is not None
    integers = stored_array(dequantize.inputs[0])
    assert integers is not None
    return integers


def _time(exported: Exported, samples: Samples) -> tuple[tuple[Latency, Latency] | None, list[str]]:
    """The latency of both files, and why it is what it is.

    Where a model does not run, a note says so: the result is none the worse for it.
    """
    notes: list[str] = []
    feeds = first(samples)
    try:
        graph = read_graph(exported.original)
        in_other_floats = has_other_floats(graph)
        original = runnable(exported.original, graph)
        if in_other_floats and isinstance(original, ir.Model):
            notes.append(IN_FLOAT32)
        # The compressed one first: it takes more memory while it opens.
        after, before = measure_latency([exported.model, original], feeds)
    except Exception as error:
        # ONNX Runtime's exceptions share no base class but Exception.
        notes.append(f"latency was not measured: a model does not run ({reason_of(error)})")
        return None, notes
    return (before, after), notes
