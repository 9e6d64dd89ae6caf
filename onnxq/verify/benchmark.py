"""Latency and size of model files, measured side by side."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.data.arrays import fixed_batch
from onnxq.data.preprocess import find_preprocess
from onnxq.data.samples import open_samples
from onnxq.errors import ModelError, reason_of
from onnxq.options.table import BENCHMARK_ROUNDS
from onnxq.runtime.session import Arrays, Feeds, as_session_takes, open_session
from onnxq.verify.opened import OpenedModel, open_model, random_feeds

LEAST_ROUNDS = 5
WARM_UP = 3
MOST_SECONDS = 15.0


@dataclass(frozen=True)
class Latency:
    """The time of one run of a model, over rounds.

    Attributes:
        median_ms: median, milliseconds.
        spread_ms: interquartile range, milliseconds.
        rounds: number of runs measured.
    """

    median_ms: float
    spread_ms: float
    rounds: int = 0


def measure_latency(
    models: Sequence[ir.Model | bytes | str | Path],
    feeds: Feeds | Sequence[Feeds],
    threads: int = 1,
    rounds: int = BENCHMARK_ROUNDS,
    most_seconds: float = MOST_SECONDS,
) -> list[Latency]:
    """Time the models in turn, one run each per round, after a warm-up.

    Since they take turns, other load on the machine slows all of them alike.

    Args:
        models: the models, in memory or in files.
        feeds: the feeds of all models, or one for each.
        threads: threads inside one operator.
        rounds: runs of each model.
        most_seconds: no round begins after this time, once 5 are done.

    Returns:
        The latency of each model, in order.
    """
    all_feeds = [feeds] * len(models) if isinstance(feeds, Mapping) else list(feeds)
    sessions = [open_session(model, threads=threads, prepack=True) for model in models]
    pairs = zip(sessions, all_feeds, strict=True)
    runs = [(session, as_session_takes(session, feed)) for session, feed in pairs]
    for session, feed in runs:
        for _ in range(WARM_UP):
            session.run(None, feed)
    times: list[list[float]] = [[] for _ in runs]
    start = time.perf_counter()
    for done in range(rounds):
        if done >= LEAST_ROUNDS and time.perf_counter() - start > most_seconds:
            break
        for (session, feed), measured in zip(runs, times, strict=True):
            before = time.perf_counter()
            session.run(None, feed)
            measured.append(time.perf_counter() - before)
    return [_latency(measured) for measured in times]


def _latency(seconds: Sequence[float]) -> Latency:
    low, median, high = np.percentile(np.array(seconds) * 1000, [25, 50, 75])
    return Latency(float(median), float(high - low), len(seconds))


@dataclass(frozen=True)
class Benchmark:
    """Latency and size of one file.

    Attributes:
        path: the file.
        size: its bytes, external data included.
        latency: of one run.
        ratio: median latency over that of the first file.
    """

    path: Path
    size: int
    latency: Latency
    ratio: float

    def to_fields(self) -> dict[str, Any]:
        """The measurements as JSON fields."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


def benchmark(
    models: Sequence[str | Path],
    *,
    threads: int = 1,
    rounds: int = BENCHMARK_ROUNDS,
    batch_size: int = 1,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    data: str | Path | None = None,
) -> list[Benchmark]:
    """Run the models in turn on the same values and time each run.

    Args:
        models: ONNX files, float or quantized.
        threads: threads inside one operator.
        rounds: runs of each model, at most 15 seconds in all.
        batch_size: of a free first dimension, unless one of the models fixes it.
        shapes: whole shapes by input name, needed where another dimension is free.
        data: samples whose first batch is fed instead of random values.

    Raises:
        OnnxqError: a file can't be run, or not with these shapes or samples.
    """
    opened = [open_model(Path(path)) for path in models]
    _check_names(opened, shapes or {})
    batch_size = _common_batch(opened) or batch_size
    if data is None:
        feeds = [random_feeds(model.inputs, batch_size, shapes or {}) for model in opened]
    else:
        feeds = [_first_batch(model, Path(data), batch_size) for model in opened]
    try:
        latencies = measure_latency([model.runnable for model in opened], feeds, threads, rounds)
    except Exception as error:
        # ONNX Runtime's exceptions share no base class but Exception.
        reason = reason_of(error)
        raise ModelError(
            f"A model does not run on {'random values' if data is None else data} ({reason}); "
            "give the shapes of its inputs with --shape, or samples with --data."
        ) from error
    first = latencies[0].median_ms
    return [
        Benchmark(model.path, model.size, latency, latency.median_ms / first)
        for model, latency in zip(opened, latencies, strict=True)
    ]


def _common_batch(opened: list[OpenedModel]) -> int | None:
    """The batch size that some of the models require; all models run it."""
    sizes = {size for model in opened if (size := fixed_batch(model.inputs)) is not None}
    return sizes.pop() if len(sizes) == 1 else None


def _check_names(opened: list[OpenedModel], shapes: Mapping[str, tuple[int, ...]]) -> None:
    known = {spec.name for model in opened for spec in model.inputs}
    for name in shapes:
        if name not in known:
            inputs = ", ".join(f"'{each}'" for each in sorted(known))
            raise ModelError(f"No model has an input '{name}'; the inputs are {inputs}.")


def _first_batch(model: OpenedModel, data: Path, batch_size: int) -> Arrays:
    preprocess = find_preprocess(model.path, model.metadata)
    samples = open_samples(data, model.inputs, preprocess, limit=batch_size)
    return next(samples.batches(batch_size))
