"""ONNX Runtime sessions, opened here alone.

Every session is single-threaded, and several threads run it side by side on fixed micro-batches. So
the result of a batch is the same on one core and on many, the weights are held once, and the
backward pass, which hardly uses a second thread, gains most.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxq.errors import EngineError, ModelError, OnnxqError, reason_of
from onnxq.graph.facts import values_by_name
from onnxq.runtime.costs import Meter
from onnxq.runtime.temporary import temporary_folder
from onnxq.runtime.weight_files import WeightFiles, is_large, link_weights

if not hasattr(ort, "InferenceSession"):
    # Several distributions install this package, and removing one takes files of the others.
    raise EngineError(
        "The package 'onnxruntime' is damaged, as it is after one of several distributions of it "
        "was removed; run 'pip install --force-reinstall --no-deps onnxruntime-training-cpu=="
        "1.19.2', or the same of onnxruntime where that has no wheel."
    )

Feeds = Mapping[str, np.ndarray]
Arrays = dict[str, np.ndarray]

PROTOBUF_LIMIT = 2**31 - 2**20
"""Bytes above which a model can't be one protobuf message."""

REFUSAL = "parameter out of computation range"
"""How ONNX Runtime's integer kernels name scales whose ratio they can't hold."""

_WEIGHT_FILES = WeightFiles()


class ScaleError(Exception):
    """An integer kernel rejects the ratio of its scales."""


def available_cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_session(
    model: ir.Model | bytes | str | Path,
    *,
    threads: int = 1,
    optimise: bool = True,
    merge: bool = True,
    prepack: bool | None = None,
    optimised_path: Path | None = None,
) -> ort.InferenceSession:
    """An inference session on the CPU for a model in memory or in a file.

    Args:
        model: an onnx-ir model, its serialized bytes, or a path.
        threads: threads inside one operator.
        optimise: False switches every graph optimization off.
        merge: whether quantization nodes may be merged with the nodes around them into integer
            kernels. That of a student with constant parameters may not: its outputs would change.
        prepack: whether the session keeps a copy of the weights in the layout of its kernels; None
            does so unless the model is large, where a batch takes far longer than packing.
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
    if not merge:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if optimised_path is not None:
        options.optimized_model_filepath = str(optimised_path)
    large = isinstance(model, ir.Model) and is_large(model)
    if prepack is None:
        prepack = not large
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    providers = ["CPUExecutionProvider"]
    if isinstance(model, (str, Path)):
        return ort.InferenceSession(str(model), options, providers=providers)
    data = model if isinstance(model, bytes) else serialized(model)
    if prepack and not large:
        return ort.InferenceSession(data, options, providers=providers)
    # Only a model that is opened from a file may name other files.
    with temporary_folder() as folder:
        path = folder / "model.onnx"
        path.write_bytes(data)
        if not _is_1_19():
            link_weights(path)
        return ort.InferenceSession(str(path), options, providers=providers)


_FLOATS: Mapping[str, np.dtype] = {
    "tensor(float16)": np.dtype(np.float16),
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
}


def as_session_takes(session: ort.InferenceSession, feeds: Feeds) -> Arrays:
    """The feeds with floats of the session's width, which may differ between models."""
    wanted = {str(each.name): _FLOATS.get(str(each.type)) for each in session.get_inputs()}
    with np.errstate(over="ignore"):
        return {name: _as_float(array, wanted.get(name)) for name, array in feeds.items()}


def _as_float(array: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
    # bfloat16 is of kind V to numpy.
    is_float = array.dtype.kind in "fV"
    return array.astype(dtype, copy=False) if dtype is not None and is_float else array


def not_opened(model: str, error: BaseException, how: str = "can't open") -> ModelError:
    """The error for a model that ONNX Runtime rejects, in the words of its own error."""
    return ModelError(
        f"ONNX Runtime {how} {model} ({reason_of(error)}); "
        "check it with onnx.checker, or export it again."
    )


def expose(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of the model with these tensors as its only outputs."""
    copy = model.clone(deep_copy=False)
    values = values_by_name(copy.graph)
    copy.graph.outputs[:] = [values[name] for name in names]
    return copy


def session_form(model: ir.Model) -> ir.Model:
    """The model itself; of a large one, a copy that refers to files for its weights."""
    return _WEIGHT_FILES.mapped(model) if is_large(model) else model


def serialized(model: ir.Model) -> bytes:
    """The bytes of a model, as sessions open it."""
    data: bytes = ir.to_proto(session_form(model)).SerializeToString()
    return data


def _is_1_19() -> bool:
    """Whether ONNX Runtime is as old as the training build."""
    major, minor = ort.__version__.split(".")[:2]
    return (int(major), int(minor)) < (1, 20)


SURE_OPSET, SURE_IR_VERSION = 21, 10
"""What every ONNX Runtime from 1.19 on reads."""
MOST_VERSIONS = 100
"""Above any version of either: where a search for the newest ends."""


@cache
def newest_opset(*, quantized: bool = False) -> int:
    """The newest version of ONNX's operators that ONNX Runtime reads, found by trial.

    Args:
        quantized: whether QuantizeLinear and DequantizeLinear have to run too: ONNX Runtime 1.32
            reads opset 28 and has their kernels up to 27.
    """
    tried = range(SURE_OPSET + 1, MOST_VERSIONS)
    return next((v - 1 for v in tried if not _reads(v, SURE_IR_VERSION, quantized)), MOST_VERSIONS)


@cache
def newest_ir_version() -> int:
    """The newest version of the file format that ONNX Runtime reads, found by trial."""
    tried = range(SURE_IR_VERSION + 1, MOST_VERSIONS)
    return next((v - 1 for v in tried if not _reads(SURE_OPSET, v)), MOST_VERSIONS)


def _reads(opset: int, ir_version: int, quantized: bool = False) -> bool:
    """Whether ONNX Runtime opens a model of two nodes in these versions."""
    x, scale = (ir.val(name, ir.DataType.FLOAT, []) for name in "xs")
    if quantized:
        first = ir.node("QuantizeLinear", [x, scale])
        second = ir.node("DequantizeLinear", [first.outputs[0], scale])
    else:
        first = ir.node("Identity", [x])
        second = ir.node("Add", [first.outputs[0], scale])
    y = second.outputs[0]
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    nodes = [first, second]
    graph = ir.Graph([x, scale], [y], nodes=nodes, opset_imports={"": opset}, name="trial")
    try:
        open_session(ir.Model(graph, ir_version=ir_version), optimise=False)
    except Exception:
        # ONNX Runtime's exceptions share no base class but Exception.
        return False
    return True


class SessionPool:
    """A session that several threads run; results come out in the order of the batches.

    Args:
        model: the model, in memory or in a file.
        outputs: names of the outputs wanted; None means all.
        workers: batches that run side by side; None means one per core.
        merge: as in `open_session`.
    """

    def __init__(
        self,
        model: ir.Model | bytes | str | Path,
        outputs: Sequence[str] | None = None,
        workers: int | None = None,
        *,
        merge: bool = True,
    ) -> None:
        self.workers, self._meter = workers or available_cores(), Meter(model)
        try:
            self._session = open_session(model, merge=merge)
        except OnnxqError:
            raise
        except Exception as error:
            # ONNX Runtime's exceptions share no base class but Exception.
            raise not_opened("the model", error) from error
        self.outputs = list(outputs or (o.name for o in self._session.get_outputs()))

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Arrays:
        """The outputs for one batch, or some of them, by name; several threads may call this.

        Raises:
            ScaleError: scales among the feeds are too far apart for an integer kernel.
            ModelError: ONNX Runtime can't run the model.
        """
        names = self.outputs if outputs is None else outputs
        feeds = as_session_takes(self._session, feeds)
        self._meter.count(feeds)
        try:
            return dict(zip(names, self._session.run(names, feeds), strict=True))
        except Exception as error:
            # ONNX Runtime's exceptions share no base class but Exception.
            if REFUSAL in str(error):
                raise ScaleError(str(error)) from error
            raise ModelError(
                f"ONNX Runtime can't run the model ({reason_of(error)}); check the model with "
                "onnx.checker, and give samples of the shapes that it expects."
            ) from error

    def map(self, batches: Iterable[Feeds]) -> Iterator[Arrays]:
        """The outputs of each batch, in order, computed a few batches ahead."""
        pending: deque[Future[Arrays]] = deque()
        with ThreadPoolExecutor(self.workers) as executor:
            for feeds in batches:
                ready = pending.popleft() if len(pending) == self.workers else None
                if ready is not None:
                    wait([ready])
                # The worker goes on while the caller handles what it has just finished.
                pending.append(executor.submit(self.run, feeds))
                if ready is not None:
                    yield ready.result()
            for future in pending:
                yield future.result()
