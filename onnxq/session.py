"""The hand-off from onnx-ir to ONNX Runtime sessions; the one place that opens them.

Every session is single-threaded and work is spread over several of them in fixed
micro-batches: the result of a batch is then the same bits on one core and on many, and
the backward pass, which barely uses a second thread, gains most.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

Feeds = Mapping[str, np.ndarray]
Arrays = dict[str, np.ndarray]

PROTOBUF_LIMIT = 2**31 - 2**20
"""Bytes above which a model can't be one protobuf message."""


def available_cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_session(
    model: ir.Model | bytes | str | Path,
    *,
    threads: int = 1,
    optimise: bool = True,
    optimised_path: Path | None = None,
) -> ort.InferenceSession:
    """An inference session on the CPU for a model in memory or in a file.

    Args:
        model: an onnx-ir model, its serialised bytes, or a path.
        threads: threads inside one operator.
        optimise: False switches every graph optimisation off (for tests of equality).
        optimised_path: where ONNX Runtime writes the graph that it really runs.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Patterns of a first batch pin memory for good: 471 -> 290 MB at the same speed.
    options.enable_mem_pattern = False
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimised_path is not None:
        options.optimized_model_filepath = str(optimised_path)
    providers = ["CPUExecutionProvider"]
    if isinstance(model, (str, Path)):
        return ort.InferenceSession(str(model), options, providers=providers)
    if isinstance(model, bytes):
        return ort.InferenceSession(model, options, providers=providers)
    return _open_in_memory(model, options, providers)


def _open_in_memory(
    model: ir.Model, options: ort.SessionOptions, providers: Sequence[str]
) -> ort.InferenceSession:
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    if size < PROTOBUF_LIMIT:
        data = ir.to_proto(model).SerializeToString()
        return ort.InferenceSession(data, options, providers=providers)
    with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.data")
        return ort.InferenceSession(str(path), options, providers=providers)


class SessionPool:
    """Single-thread sessions over one model; batches go in and results come out in order.

    Args:
        model: the model, in memory or in a file.
        outputs: names of the outputs wanted; None means all.
        workers: sessions that run side by side; None means one per core.
    """

    def __init__(
        self,
        model: ir.Model | bytes | str | Path,
        outputs: Sequence[str] | None = None,
        workers: int | None = None,
    ) -> None:
        self.workers = workers or available_cores()
        if isinstance(model, ir.Model) and self.workers > 1:
            data: ir.Model | bytes | str | Path = _bytes_or_model(model)
        else:
            data = model
        self._sessions = [open_session(data) for _ in range(self.workers)]
        self.outputs = list(outputs or (o.name for o in self._sessions[0].get_outputs()))

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Arrays:
        """The outputs for one batch, or some of them, by name; several threads may call it."""
        return self._run(0, feeds, outputs)

    def map(self, batches: Iterable[Feeds]) -> Iterator[Arrays]:
        """The outputs of each batch, in the order of the batches, a few batches ahead."""
        idle = deque(range(self.workers))
        pending: deque[tuple[int, Future[Arrays]]] = deque()
        with ThreadPoolExecutor(self.workers) as executor:
            for feeds in batches:
                ready: Future[Arrays] | None = None
                if idle:
                    worker = idle.popleft()
                else:
                    worker, ready = pending.popleft()
                    wait([ready])
                # The worker goes on while the caller handles what it has just finished.
                pending.append((worker, executor.submit(self._run, worker, feeds)))
                if ready is not None:
                    yield ready.result()
            for _, future in pending:
                yield future.result()

    def _run(self, worker: int, feeds: Feeds, outputs: Sequence[str] | None = None) -> Arrays:
        names = self.outputs if outputs is None else outputs
        values = self._sessions[worker].run(names, dict(feeds))
        return dict(zip(names, values, strict=True))


def _bytes_or_model(model: ir.Model) -> ir.Model | bytes:
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    return ir.to_proto(model).SerializeToString() if size < PROTOBUF_LIMIT else model
