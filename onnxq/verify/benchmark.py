"""Latency and size of model files, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxq.errors import ModelError
from onnxq.verify.latency import ROUNDS, Latency, measure_latency
from onnxq.verify.opened import open_model, random_feeds


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
    rounds: int = ROUNDS,
    batch_size: int = 1,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> list[Benchmark]:
    """Run the models in turn on random values and time each run.

    Args:
        models: ONNX files, float or quantized.
        threads: threads inside one operator.
        rounds: runs of each model, at most 15 seconds in all.
        batch_size: what a free first dimension becomes; other free ones are 1.
        shapes: whole shapes by input name, where 1 won't do.

    Raises:
        ModelError: a file can't be run, or not with these shapes.
    """
    opened = [open_model(Path(path)) for path in models]
    known = {spec.name for model in opened for spec in model.inputs}
    unknown = [name for name in shapes or {} if name not in known]
    if unknown:
        raise ModelError(
            f"No model has an input '{unknown[0]}'; the inputs are "
            f"{', '.join(repr(name) for name in sorted(known))}."
        )
    feeds = [random_feeds(model.inputs, batch_size, shapes or {}) for model in opened]
    try:
        latencies = measure_latency([model.path for model in opened], feeds, threads, rounds)
    except Exception as error:
        # ONNX Runtime's exceptions share no base class but Exception.
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ModelError(
            f"A model does not run on random values ({reason}); give the shapes of its inputs "
            "with --shape."
        ) from error
    first = latencies[0].median_ms
    return [
        Benchmark(model.path, model.size, latency, latency.median_ms / first)
        for model, latency in zip(opened, latencies, strict=True)
    ]
