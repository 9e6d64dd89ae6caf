"""The cost of a run by stage: CPU seconds, and forward passes of the samples.

A forward pass is all samples once through the float model. A session that runs a part of the model
counts as the share of its multiplications, on as many samples as it runs; a backward pass counts as
two. What quantization adds to a graph counts as nothing: seconds tell that.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock

import numpy as np
import onnx_ir as ir

OTHER = "other"
"""The stage of what no stage claims."""

FORWARD, TRAINING = 1, 3
"""Passes of one run: a forward pass, and one with its backward pass."""


@dataclass(frozen=True)
class StageCost:
    """The cost of one stage, without the stages inside it.

    Attributes:
        stage: its name.
        seconds: CPU seconds of this process and of its finished children.
        passes: forward passes of the samples through the float model.
    """

    stage: str
    seconds: float
    passes: float


class Costs:
    """Counts what one run costs. Sessions opened inside `running` are counted by it.

    Args:
        clock: returns CPU seconds.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or _cpu_seconds
        self._operations: dict[str, int] = {}
        self._pass, self.batch = 0, 1
        self._seconds: dict[str, float] = {}
        self._counted: dict[str, int] = {}
        self._open: list[str] = [OTHER]
        self._lock, self._since = Lock(), self._clock()

    @contextmanager
    def running(self) -> Iterator[Costs]:
        """Count the sessions that this thread opens in the block."""
        token = _CURRENT.set(self)
        try:
            yield self
        finally:
            _CURRENT.reset(token)

    def set_model(self, model: ir.Model, samples: int, batch: int | None) -> None:
        """Set the float model and the samples of one pass; nothing is counted before.

        Args:
            model: the float model; other graphs keep the names of its nodes.
            samples: number of samples.
            batch: samples in one feed of a model of fixed batch.
        """
        self._operations = {str(node.name): _operations(node) for node in model.graph}
        self._pass, self.batch = sum(self._operations.values()) * samples, batch or 1

    def operations(self, model: ir.Model) -> int:
        """Operations of the float model's nodes in a graph, for one sample."""
        return sum(self._operations.get(str(node.name), 0) for node in model.graph)

    def add(self, operations: int) -> None:
        """Count operations towards the current stage; several threads may call this."""
        with self._lock:
            stage = self._open[-1]
            self._counted[stage] = self._counted.get(stage, 0) + operations

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count a block towards a stage; a stage inside another one counts for itself alone."""
        self._change(lambda: self._open.append(name))
        try:
            yield
        finally:
            self._change(self._open.pop)

    def rows(self) -> list[StageCost]:
        """The stages in the order in which they began."""
        self._change(lambda: None)
        unit = max(self._pass, 1)
        return [
            StageCost(stage, seconds, self._counted.get(stage, 0) / unit)
            for stage, seconds in self._seconds.items()
        ]

    def _change(self, change: Callable[[], object]) -> None:
        """Count the time up to now towards the current stage, then change that."""
        now = self._clock()
        with self._lock:
            stage = self._open[-1]
            self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._since
            self._since = now
            change()
            self._seconds.setdefault(self._open[-1], 0.0)


_CURRENT: ContextVar[Costs | None] = ContextVar("costs", default=None)


def current_costs() -> Costs | None:
    """The counter of the run that this thread works for; None outside of one."""
    return _CURRENT.get()


def count_for(costs: Costs | None) -> None:
    """Let this thread work for a run: what a pool calls first in each of its threads."""
    _CURRENT.set(costs)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count a block towards a stage of the current run; outside of one, nothing is counted."""
    costs = current_costs()
    if costs is None:
        yield
        return
    with costs.stage(name):
        yield


class Meter:
    """Counts the runs of one session towards the run that opened it.

    Args:
        model: the session's graph.
        passes: of one run, `FORWARD` or `TRAINING`.
    """

    def __init__(self, model: object, passes: int = FORWARD) -> None:
        self._costs = current_costs()
        self._rows: str | None = None
        self._operations = 0
        if self._costs is not None and isinstance(model, ir.Model):
            self._operations = passes * self._costs.operations(model)
            self._rows = _sample_input(model)

    def count(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Count one run."""
        if self._costs is None or not self._operations:
            return
        given = None if self._rows is None else feeds.get(self._rows)
        rows = self._costs.batch if given is None else given.shape[0]
        self._costs.add(self._operations * rows)


def _sample_input(model: ir.Model) -> str | None:
    """The first input whose first dimension is free: the samples; None where the batch is fixed."""
    for value in model.graph.inputs:
        if value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int):
            return str(value.name)
    return None


def _operations(node: ir.Node) -> int:
    """Multiplications of a node for one sample, about; unknown dimensions count as 1."""
    elements = sum(_elements(value) for value in node.outputs)
    if node.op_type in ("Conv", "ConvTranspose"):
        weight = _dims(node.inputs[1])
        return elements * max(1, math.prod(weight[1:]))
    if node.op_type in ("MatMul", "Gemm"):
        return elements * max(1, *_dims(node.inputs[0])[-1:], 1)
    return elements


def _elements(value: ir.Value) -> int:
    return max(1, math.prod(_dims(value)[1:]))


def _dims(value: ir.Value | None) -> list[int]:
    """The dimensions; those that are unknown count as 1."""
    if value is None or value.shape is None:
        return []
    return [dim if isinstance(dim, int) else 1 for dim in value.shape]


def _cpu_seconds() -> float:
    """CPU seconds of this process, and of its children that have ended."""
    return sum(os.times()[:4])
