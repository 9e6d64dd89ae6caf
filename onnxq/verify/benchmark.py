"""Latency and size of model files, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxq.data.inputs import fixed_batch
from onnxq.data.preprocess import find_preprocess
from onnxq.data.samples import open_samples
from onnxq.errors import ModelError, reason_of
from onnxq.options import BENCHMARK_ROUNDS
from onnxq.session import Arrays
from onnxq.verify.latency import Latency, measure_latency
from onnxq.verify.opened import OpenedModel, open_model, random_feeds


@dataclass(frozen=True)
class Benchmark:
    """One file's figures.

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
        """The figures by name, as JSON takes them."""
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
        batch_size: what a free first dimension becomes, unless one of the models fixes it.
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
    """The batch that some of the models insist on, so that the others run as many samples."""
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
