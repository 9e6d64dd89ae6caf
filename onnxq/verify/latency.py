"""How long models take, side by side on the same machine at the same moment."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.options import BENCHMARK_ROUNDS
from onnxq.session import Feeds, as_session_takes, open_session

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

    Taking turns lets whatever else the machine does slow all of them alike.

    Args:
        models: the models, in memory or in files.
        feeds: what all of them read, or one for each of them.
        threads: threads inside one operator.
        rounds: runs of each model.
        most_seconds: no round begins after this time, once 5 are done.

    Returns:
        One figure for each model, in order.
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
